import errno
import io
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT
from safemax_pl.data import sources
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.data.sources import DIGITS, Source
from safemax_pl.data.splits import held_out_mask
from safemax_pl.data.tree import walk

COLUMNS = {"image": "image", "label": "label", "superclass": None}
CIFAR = PROJECT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def keep_out_of_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hugging_face")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "animals"


def load(path: Path | str, cache: Path, shape=(3, 8, 8), resize=False, **columns: str) -> Source:
    return sources.load(str(path), COLUMNS | columns, shape, resize, cache)


def load_digits(cache: Path) -> Source:
    return load(DIGITS, cache, (1, 8, 8))


def pixels(seed: int, size=(8, 8)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def write_image(path: Path, seed: int = 0, size=(8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, size)).convert(mode).save(path)


def write_class(folder: Path, count: int, seed: int = 0) -> None:
    for i in range(count):
        write_image(folder / f"{i}.png", 100 * seed + i)


def write_parquet(path: Path, images: list[Any], names=("cat", "dog", "oak"), kinds=("animal", "plant")) -> None:
    """A table in the hub's layout: row i has the label i % 3, and the last of the labels is a plant."""
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    labels = [i % 3 for i in range(len(images))]
    columns = {"img": images, "fine": labels, "coarse": [int(i == 2) for i in labels], "number": labels}
    features = Features(
        {
            "img": ImageFeature(),
            "fine": ClassLabel(names=list(names)),
            "coarse": ClassLabel(names=list(kinds)),
            "number": Value("int64"),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=features).to_parquet(str(path))


def pictures(count: int, start: int = 0) -> list[Image.Image]:
    return [Image.fromarray(pixels(start + i)) for i in range(count)]


def cache_file(cache: Path) -> Path:
    (file,) = (cache / "data").iterdir()
    return file


# -- digits ------------------------------------------------------------------------------------------------------


def test_the_digits_are_1797_grey_images_of_ten_classes(tmp_path):
    digits = load_digits(tmp_path)
    assert digits.train.images.shape[1:] == digits.test.images.shape[1:] == (1, 8, 8)
    assert digits.train.images.dtype == torch.uint8 and digits.train.labels.dtype == torch.long
    assert len(digits.train.images) + len(digits.test.images) == 1797
    assert digits.class_names == list("0123456789") and digits.superclass_names == []
    assert digits.train.images.min() == 0 and digits.train.images.max() == 255


def test_every_digit_is_in_exactly_one_split(tmp_path):
    from sklearn.datasets import load_digits as original

    digits = load_digits(tmp_path)
    ours = torch.cat([digits.train.images, digits.test.images]).flatten(1)
    labels = torch.cat([digits.train.labels, digits.test.labels])
    theirs = original()
    expected = torch.from_numpy(theirs.images * (255 / 16)).round().to(torch.uint8).flatten(1)
    assert sorted(map(tuple, torch.column_stack([labels, ours]).tolist())) == sorted(
        map(tuple, torch.column_stack([torch.from_numpy(theirs.target), expected]).tolist())
    )


def test_a_fifth_of_every_digit_is_the_test_split(tmp_path):
    digits = load_digits(tmp_path)
    train, test = digits.train.labels.bincount(), digits.test.labels.bincount()
    assert torch.equal(test, (0.2 * (train + test)).round().long())


def test_the_digits_are_the_same_on_every_machine(tmp_path):
    one, other = load_digits(tmp_path / "one"), load_digits(tmp_path / "other")
    assert one.fingerprint == other.fingerprint
    for a, b in zip([*one.train, *one.test], [*other.train, *other.test], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 32, 32)])
def test_digits_of_another_shape_are_refused(tmp_path, shape):
    with pytest.raises(UserError):
        load(DIGITS, tmp_path, shape)


def test_the_held_out_part_of_every_class_is_rounded_and_fixed():
    labels = torch.cat([torch.arange(100) % 2, torch.full((18,), 2)])
    mask = held_out_mask(labels, 3, 0.1)
    assert labels[mask].bincount().tolist() == [5, 5, 2]
    assert torch.equal(mask, held_out_mask(labels, 3, 0.1))
    assert not held_out_mask(labels, 3, 0.0).any() and held_out_mask(labels, 3, 1.0).all()


# -- the cache ---------------------------------------------------------------------------------------------------


def test_images_are_decoded_once(tmp_path, monkeypatch):
    first = load_digits(tmp_path)

    def refuse(*args: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(sources, "_decode_to", refuse)
    again = load_digits(tmp_path)
    assert again.fingerprint == first.fingerprint and again.class_names == first.class_names
    assert torch.equal(again.train.images, first.train.images)


def test_a_changed_folder_is_decoded_again(tmp_path, folder):
    write_class(folder / "cat", 5, seed=1)
    write_class(folder / "dog", 5, seed=2)
    before = load(folder, tmp_path)
    write_image(folder / "dog" / "new.png", seed=999)
    after = load(folder, tmp_path)
    assert len(after.train.labels) == len(before.train.labels) + 1
    assert after.fingerprint != before.fingerprint


def test_a_copy_of_a_folder_is_not_decoded_again(tmp_path, folder, monkeypatch):
    write_class(folder / "cat", 5, seed=1)
    write_class(folder / "dog", 5, seed=2)
    first = load(folder, tmp_path / "cache")
    copied = Path(shutil.copytree(folder, tmp_path / "delivered" / "pets", copy_function=shutil.copyfile))
    assert (copied / "cat/0.png").stat().st_mtime_ns != (folder / "cat/0.png").stat().st_mtime_ns
    monkeypatch.setattr(sources, "_decode_to", lambda *_: pytest.fail("decoded again"))
    assert load(copied, tmp_path / "cache").fingerprint == first.fingerprint


def test_other_content_of_the_same_size_and_time_is_decoded_again(tmp_path):
    for number, path in ((0, tmp_path / "a/train/cat/0.bmp"), (1, tmp_path / "b/train/cat/0.bmp")):
        write_image(path, number)
        write_image(path.parents[1] / "dog/0.bmp")
        os.utime(path, (0, 0))
    a, b = (load(tmp_path / name, tmp_path / "cache") for name in "ab")
    assert a.fingerprint != b.fingerprint


def test_a_large_folder_is_recognised_without_being_read(tmp_path, folder, monkeypatch):
    write_class(folder / "cat", 5, seed=1)
    write_class(folder / "dog", 5, seed=2)
    monkeypatch.setattr(sources, "HASHED_BYTES", 100)
    monkeypatch.setattr(sources, "file_digest", lambda _: pytest.fail("read"))
    before = load(folder, tmp_path / "cache")
    write_image(folder / "dog" / "0.png", seed=999)
    assert load(folder, tmp_path / "cache").fingerprint != before.fingerprint


def test_another_size_or_column_is_another_cache_entry(tmp_path):
    write_parquet(tmp_path / "table" / "train.parquet", pictures(6))
    load(tmp_path / "table", tmp_path, image="img", label="fine")
    load(tmp_path / "table", tmp_path, image="img", label="coarse")
    load(tmp_path / "table", tmp_path, (3, 4, 4), resize=True, image="img", label="fine")
    assert len(list((tmp_path / "data").iterdir())) == 3


@pytest.mark.parametrize("length", [0, 4, 100, 1000])
def test_a_truncated_cache_is_named(tmp_path, length):
    load_digits(tmp_path)
    file = cache_file(tmp_path)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match=rf"{file} is damaged .*delete it and run again"):
        load_digits(tmp_path)


def test_a_cache_that_something_else_wrote_is_named(tmp_path):
    from safetensors.torch import save_file

    load_digits(tmp_path)
    file = cache_file(tmp_path)
    save_file({"weight": torch.zeros(2)}, file)
    with pytest.raises(UserError, match=f"{file} is damaged"):
        load_digits(tmp_path)


def test_a_cache_whose_writing_was_cut_short_does_not_count(tmp_path, monkeypatch):
    def fill_the_disk(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(sources, "save_file", fill_the_disk)
        load_digits(tmp_path)
    assert len(load_digits(tmp_path).class_names) == 10


def test_a_deleted_cache_is_written_again(tmp_path):
    first = load_digits(tmp_path)
    cache_file(tmp_path).unlink()
    assert load_digits(tmp_path).fingerprint == first.fingerprint


def fill_cache(barrier: Any, cache: Path, answer: Path) -> None:
    barrier.wait(300)
    answer.write_text(load_digits(cache).fingerprint)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*")
def test_two_processes_can_fill_one_cache_at_once(tmp_path):
    fork = multiprocessing.get_context("fork")
    barrier, cache, answers = fork.Barrier(2), tmp_path / "cache", [tmp_path / "answer_0", tmp_path / "answer_1"]
    other = fork.Process(target=fill_cache, args=(barrier, cache, answers[0]))
    other.start()
    fill_cache(barrier, cache, answers[1])
    other.join(300)
    assert other.exitcode == 0
    assert {answer.read_text() for answer in answers} == {load_digits(cache).fingerprint}
    assert cache_file(cache).suffix == ".safetensors"


# -- folders of images -------------------------------------------------------------------------------------------


def test_folders_give_the_classes_and_pixels_come_as_they_are(tmp_path, folder):
    for split in ("train", "test"):
        for i, name in enumerate(["zebra", "ant"]):
            write_image(folder / split / name / "a.png", seed=i)
    source = load(folder, tmp_path)
    assert source.class_names == ["ant", "zebra"]
    for split in (source.train, source.test):
        assert sorted(split.labels.tolist()) == [0, 1]
        for image, label in zip(split.images, split.labels.tolist(), strict=True):
            seed = ["zebra", "ant"].index(source.class_names[label])
            assert torch.equal(image, torch.from_numpy(pixels(seed)).permute(2, 0, 1))
        assert split.superclasses.tolist() == [-1, -1]


def test_the_test_split_of_a_folder_is_used(tmp_path, folder):
    for i, name in enumerate(["cat", "dog"]):
        write_class(folder / "train" / name, 5, seed=i)
        write_class(folder / "test" / name, 3, seed=10 + i)
    source = load(folder, tmp_path)
    assert source.train.labels.bincount().tolist() == [5, 5]
    assert source.test.labels.bincount().tolist() == [3, 3]


def test_without_a_test_split_a_fifth_of_every_class_is_held_out(tmp_path, folder):
    for i, name in enumerate(["cat", "dog"]):
        write_class(folder / name, 10, seed=i)
    source = load(folder, tmp_path)
    assert source.train.labels.bincount().tolist() == [8, 8]
    assert source.test.labels.bincount().tolist() == [2, 2]
    assert len(torch.cat([source.train.images, source.test.images]).flatten(1).unique(dim=0)) == 20


@pytest.mark.parametrize("name", ["train", "test", "bird_test", "validation"])
def test_a_class_named_like_a_split_stays_a_class(tmp_path, folder, name):
    for split, count in (("train", 5), ("test", 3)):
        for i, kind in enumerate(["car", name]):
            write_class(folder / split / kind, count, seed=i + 10 * (split == "test"))
    source = load(folder, tmp_path)
    assert source.class_names == sorted(["car", name])
    assert source.train.labels.bincount().tolist() == [5, 5]
    assert source.test.labels.bincount().tolist() == [3, 3]


def test_files_that_are_no_images_are_passed_over(tmp_path, folder):
    write_class(folder / "cat", 5, seed=1)
    write_class(folder / "dog", 5, seed=2)
    (folder / "README.txt").write_text("about these images")
    (folder / "cat" / "Thumbs.db").write_bytes(b"\0")
    source = load(folder, tmp_path)
    assert len(source.train.labels) + len(source.test.labels) == 10


def test_an_image_of_the_wrong_size_is_named_and_the_remedy_too(tmp_path, folder):
    write_class(folder / "cat", 2, seed=1)
    write_class(folder / "dog", 2, seed=2)
    write_image(folder / "dog" / "wide.png", size=(8, 9))
    with pytest.raises(UserError, match=r"dog/wide\.png is 9x8, expected 8x8.*data\.resize=true"):
        load(folder, tmp_path)


def test_resizing_scales_and_crops_the_centre(tmp_path, folder):
    wide = np.zeros((8, 16, 3), dtype=np.uint8)
    wide[:, 4:12] = 200
    for name in ("cat", "dog"):
        write_class(folder / name, 5)
        Image.fromarray(wide).save(folder / name / "wide.png")
    source = load(folder, tmp_path, resize=True)
    images = torch.cat([source.train.images, source.test.images])
    assert images.shape == (12, 3, 8, 8)
    assert (images == 200).flatten(1).all(dim=1).sum() == 2


@pytest.mark.parametrize("content", [b"not an image", b"", pytest.param(None, id="truncated")])
def test_a_broken_image_is_named(tmp_path, folder, content):
    write_class(folder / "cat", 2, seed=1)
    write_class(folder / "dog", 2, seed=2)
    broken = folder / "dog" / "broken.png"
    write_image(broken)
    broken.write_bytes(broken.read_bytes()[:100] if content is None else content)
    with pytest.raises(UserError, match=r"cannot decode the image .*dog/broken\.png.*repair or remove it"):
        load(folder, tmp_path)


def test_nothing_is_cached_of_a_broken_source(tmp_path, folder):
    write_class(folder / "cat", 2)
    write_class(folder / "dog", 2)
    (folder / "dog" / "broken.png").write_bytes(b"")
    with pytest.raises(UserError):
        load(folder, tmp_path)
    assert not list(tmp_path.glob("data/*"))
    (folder / "dog" / "broken.png").unlink()
    load(folder, tmp_path)


@pytest.mark.parametrize(("mode", "channels"), [("L", 3), ("RGB", 1), ("RGBA", 3), ("P", 3), ("L", 1)])
def test_images_are_brought_to_the_wanted_channels(tmp_path, folder, mode, channels):
    for name in ("cat", "dog"):
        write_image(folder / name / "a.png", seed=3, mode=mode)
    source = load(folder, tmp_path, (channels, 8, 8))
    expected = Image.fromarray(pixels(3)).convert(mode).convert("L" if channels == 1 else "RGB")
    expected = torch.from_numpy(np.array(expected)).reshape(8, 8, channels).permute(2, 0, 1)
    assert torch.equal(source.train.images[0], expected)


def test_an_empty_folder_is_refused_with_what_is_expected(tmp_path, folder):
    folder.mkdir()
    with pytest.raises(UserError, match=r"neither train\*\.parquet nor images as train/<class>"):
        load(folder, tmp_path)


@pytest.mark.parametrize("path", ["/nowhere/animals", "./animals", "animals", "a/b/c"])
def test_a_path_that_does_not_exist_is_refused_with_the_legal_kinds(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"{path} does not exist: give sklearn/digits, an existing folder or a hub id"):
        load(path, tmp_path)


def test_a_folder_in_the_home_directory_is_found(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("cat", "dog"):
        write_class(folder / name, 5)
    assert load("~/animals", tmp_path).class_names == ["cat", "dog"]


# -- how folders are laid out, and what their names may be -------------------------------------------------------


def lay_out(root: Path, classes: dict[str, int]) -> None:
    """Write so many images into every folder, each with pixels of its own."""
    for i, (name, count) in enumerate(classes.items()):
        write_class(root / name, count, seed=i)


def counts(source: Source) -> tuple[dict[str, int], dict[str, int]]:
    """Class -> number of images, of both splits."""
    return tuple(
        dict(zip(source.class_names, split.labels.bincount(minlength=len(source.class_names)).tolist(), strict=True))
        for split in (source.train, source.test)
    )


STRANGE = [
    "dog [small]",
    "dog*",
    "dogs",
    "what?",
    "cost_$5_to_$9",
    "${name}",
    "{a,b}",
    "a%20b",
    "犬",
    "-x",
    "a'b\"c",
    "~",
]


def test_classes_have_the_names_of_their_folders_whatever_these_are(tmp_path):
    root = tmp_path / "pets [new] *{1}$"
    lay_out(root, {f"train/{name}": 2 for name in STRANGE} | {f"test/{name}": 1 for name in STRANGE})
    source = load(root, tmp_path)
    assert source.class_names == sorted(STRANGE)
    assert counts(source) == (dict.fromkeys(sorted(STRANGE), 2), dict.fromkeys(sorted(STRANGE), 1))
    for row, label in enumerate(source.train.labels.tolist()):
        seed = 100 * STRANGE.index(source.class_names[label])
        own = [torch.from_numpy(pixels(seed + i)).permute(2, 0, 1) for i in range(2)]
        assert any(torch.equal(source.train.images[row], image) for image in own)


@pytest.mark.parametrize("name", ["photo [1].png", "a*.JPEG", "# d.tif", "é.bmp"])
def test_images_are_found_whatever_their_names(tmp_path, folder, name):
    lay_out(folder, {"cat": 3, "dog": 3})
    write_image(folder / "cat" / name)
    assert len(load(folder, tmp_path).train.labels) + len(load(folder, tmp_path).test.labels) == 7


TRAIN_AND_TEST = ({"cat": 2, "dog": 2}, {"cat": 1, "dog": 1})
HELD_OUT = ({"cat": 4, "dog": 4}, {"cat": 1, "dog": 1})


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("training", "testing"),
        ("data/train", "data/test"),
        ("train", "val"),
        ("train", "Validation"),
        ("training_set/training_set", "test_set/test_set"),
        ("train/images", "test/images"),
        ("train2017", "val2017"),
    ],
)
def test_splits_are_recognised_by_their_usual_names(tmp_path, folder, train, test):
    lay_out(folder, {f"{train}/cat": 2, f"{train}/dog": 2, f"{test}/cat": 1, f"{test}/dog": 1})
    assert counts(load(folder, tmp_path)) == TRAIN_AND_TEST


def test_a_validation_split_beside_a_test_split_is_left_out_and_named(tmp_path, folder, capsys):
    lay_out(
        folder,
        {f"{split}/{name}": n for split, n in (("train", 2), ("test", 1), ("val", 3)) for name in ("cat", "dog")},
    )
    assert counts(load(folder, tmp_path)) == TRAIN_AND_TEST
    assert "left out, images of the validation split, as there is a test split: 6" in capsys.readouterr().out


@pytest.mark.parametrize(
    "layout",
    [["pets"], ["train"], ["data/train"], ["pets/all"], ["train/train"], [""]],
    ids=lambda layout: layout[0] or "bare",
)
def test_without_a_test_split_a_part_is_held_out(tmp_path, folder, layout):
    lay_out(folder / layout[0], {"cat": 5, "dog": 5})
    assert counts(load(folder, tmp_path)) == HELD_OUT


def test_vehicles_may_be_trains(tmp_path, folder):
    lay_out(folder, {"car": 5, "train": 5, "test_car": 5})
    assert counts(load(folder, tmp_path))[0] == {"car": 4, "test_car": 4, "train": 4}


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"train": 4}, "no folders that name their classes"),
        ({"Training": 4, "test": 4}, "no folders that name their classes"),
        ({"": 4}, "no folders that name their classes"),
        ({"cat": 4}, r"has one class \(cat\)"),
        ({"train/cat": 4, "test/cat": 4}, r"has one class \(cat\)"),
        ({"cat/persian": 4, "dog/persian": 4}, "cat/persian holds images below the class folder .*cat"),
        ({"cat": 4, "cat/more": 4, "dog": 4}, "cat/more holds images below the class folder"),
        ({"train/cat/images": 4, "train/dog/images": 4}, "train/cat/images holds images below the class folder"),
        ({"a/train/cat": 4, "b/train/cat": 4}, "holds images below the class folder"),
        ({"train/cat": 4, "train/dog": 4, "test/cat": 1}, "has no images of dog in the test split"),
        (
            {"train/cat": 4, "train/dog": 4, "test/cat": 1, "test/Dog": 1},
            "no training images of Dog, which the test split",
        ),
        ({"train/cat": 4, "train/owl": 4, "val/cat": 1, "val/owl": 1, "val/dog": 1}, "no training images of dog"),
        ({"train/cat": 4, "Train/dog": 4}, "which is the train split, Train or train"),
        ({"val/cat": 4, "test/dog": 4}, r"no train/ with class folders, only test, val"),
        ({"training_shoe/nike": 4, "boot/nike": 4}, "training_shoe looks like a split and boot does not"),
        ({"line\nbreak": 4, "dog": 4}, "characters that can't be printed"),
        ({"e\u0301": 4, "\xe9": 4}, "two folders that read é"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_what_is_unclear_is_refused_and_named(tmp_path, folder, layout, message):
    lay_out(folder, layout)
    with pytest.raises(UserError, match=message) as caught:
        load(folder, tmp_path)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints",
        "__MACOSX",
        "@eaDir",
        "$RECYCLE.BIN",
        ".thumbs",
        "__pycache__",
        "cat/.cache",
        "train/@eaDir",
        "cat/._0.png",
    ],
)
def test_what_systems_leave_in_folders_is_left_out_and_named(tmp_path, folder, name, capsys):
    lay_out(folder, {"cat": 5, "dog": 5})
    if name.endswith(".png"):
        (folder / name).write_bytes(b"resource fork")
    else:
        write_class(folder / name, 3)
    assert counts(load(folder, tmp_path)) == HELD_OUT
    assert f"left out, hidden: 1 ({name})" in capsys.readouterr().out


def test_a_long_search_says_what_it_is_doing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("safemax_pl.data.tree.SAY_AFTER", 3)
    for name in "abcde":
        (tmp_path / f"{name}.txt").touch()
    walk(tmp_path)
    assert capsys.readouterr().out.count(f"still searching {tmp_path}: 3 entries without images") == 1


def test_what_is_found_is_printed_when_it_is_decoded_and_only_then(tmp_path, folder, capsys):
    lay_out(folder, {"train/cat": 3, "train/dog": 2, "test/cat": 1, "test/dog": 1, "train/.hidden": 1, "other/bird": 2})
    (folder / "train/empty").mkdir()
    (folder / "train/loop").symlink_to(folder)
    (folder / "train/cat/list.txt").write_text("0 1 2")
    write_image(folder / "train/stray.png")
    os.mkfifo(folder / "train/cat/pipe.png")
    load(folder, tmp_path)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if "decoding" not in line]
    assert lines[:4] == [
        f"data: {folder}",
        "2 classes, 5 training images, 2 test images (the test split)",
        "training images by class: cat 3, dog 2",
        "test images by class: cat 1, dog 1",
    ]
    assert set(lines[4:]) == {
        "left out, hidden: 1 (train/.hidden)",
        "left out, folders that are not splits: 1 (other)",
        "left out, folders without images: 1 (train/empty)",
        "left out, links to a folder above them: 1 (train/loop)",
        "left out, files that end in .txt, which are not read: 1 (train/cat/list.txt)",
        "left out, images outside of class folders: 1 (train/stray.png)",
        "left out, neither files nor folders: 1 (train/cat/pipe.png)",
    }
    load(folder, tmp_path)
    assert capsys.readouterr().out == ""


def test_links_to_folders_and_files_are_followed(tmp_path, folder, monkeypatch):
    lay_out(folder, {"cat": 5})
    lay_out(tmp_path / "elsewhere", {"owls": 5})
    (folder / "owl").symlink_to(tmp_path / "elsewhere/owls")
    (folder / "cat/link.png").symlink_to(tmp_path / "elsewhere/owls/0.png")
    (tmp_path / "link").symlink_to(folder)
    source = load(tmp_path / "link", tmp_path)
    assert source.class_names == ["cat", "owl"] and len(source.train.labels) + len(source.test.labels) == 11
    write_image(tmp_path / "elsewhere/owls/new.png")  # the cache notices what is behind a link
    source = load(folder, tmp_path)
    assert len(source.train.labels) + len(source.test.labels) == 12


@pytest.mark.parametrize("target", [".", "..", "../../animals", "/"], ids=["itself", "above", "by name", "the root"])
def test_links_that_lead_in_circles_end(tmp_path, folder, target):
    lay_out(folder, {"cat": 5, "dog": 5})
    if target == "/":
        (folder / "a").symlink_to(folder.parent)
    else:
        (folder / "cat" / "loop").symlink_to(target)
    assert counts(load(folder, tmp_path / "cache")) == HELD_OUT


def test_links_that_multiply_are_refused(tmp_path, folder):
    lay_out(folder / "0", {"cat": 1, "dog": 1})
    for level in range(1, 12):
        for name in "abc":
            (folder / str(level)).mkdir(exist_ok=True)
            (folder / str(level) / name).symlink_to(folder / str(level - 1))
    with pytest.raises(UserError, match=r"links in .* lead to .* more than 16 times"):
        load(folder / "11", tmp_path)


@pytest.mark.parametrize("name", ["owl", "cat/photo.png"])
def test_a_link_to_nothing_is_named(tmp_path, folder, name):
    lay_out(folder, {"cat": 5, "dog": 5})
    (folder / name).symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=f"{folder / name} is a link to nothing"):
        load(folder, tmp_path)


@pytest.mark.parametrize(
    ("size", "mode", "shape", "message"),
    [
        (
            (28, 28),
            "L",
            (3, 32, 32),
            r"28x28, expected 32x32: set data\.image_size=28 data\.channels=1, or data\.resize=true",
        ),
        ((28, 28), "RGB", (1, 32, 32), r"set data\.image_size=28 data\.channels=3, or data\.resize=true"),
        ((20, 28), "L", (3, 28, 28), r"28x20, expected 28x28: set data\.resize=true .*images must be square"),
        (None, "L", (3, 28, 28), r"set data\.resize=true .*several sizes"),
    ],
)
def test_all_settings_that_fit_are_named_at_once(tmp_path, folder, size, mode, shape, message):
    for i, name in enumerate(("cat", "dog")):
        for j in range(3):
            write_image(folder / name / f"{j}.png", size=size or (20 + j, 20 + i), mode=mode)
    with pytest.raises(UserError, match=message):
        load(folder, tmp_path, shape)


@pytest.mark.parametrize("path", ["", " ", None, 2024, True])
def test_a_path_that_is_none_is_refused(tmp_path, path):
    with pytest.raises(UserError, match=r"data\.path=.*: give sklearn/digits"):
        sources.load(path, COLUMNS, (3, 8, 8), False, tmp_path)


@pytest.mark.parametrize(
    ("path", "message"), [("x" * 300, "can't be read"), ("~nobody_at_all/x", "can't be read"), ("f.png", "is a file")]
)
def test_a_path_that_leads_nowhere_is_refused(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "f.png")
    with pytest.raises(UserError, match=message):
        load(path, tmp_path)


# -- parquet -----------------------------------------------------------------------------------------------------


def test_parquet_in_the_layout_of_the_hub_is_read(tmp_path):
    write_parquet(tmp_path / "table" / "train-00000-of-00002.parquet", pictures(6))
    write_parquet(tmp_path / "table" / "train-00001-of-00002.parquet", pictures(3, start=6))
    write_parquet(tmp_path / "table" / "test-00000-of-00001.parquet", pictures(3, start=20))
    source = load(tmp_path / "table", tmp_path, image="img", label="fine", superclass="coarse")
    assert source.class_names == ["cat", "dog", "oak"] and source.superclass_names == ["animal", "plant"]
    assert source.train.labels.tolist() == [0, 1, 2] * 3 and source.test.labels.tolist() == [0, 1, 2]
    assert source.train.superclasses.tolist() == [0, 0, 1] * 3 and source.test.superclasses.tolist() == [0, 0, 1]
    assert torch.equal(source.train.images[8], torch.from_numpy(pixels(8)).permute(2, 0, 1))
    assert torch.equal(source.test.images[0], torch.from_numpy(pixels(20)).permute(2, 0, 1))


def test_parquet_in_a_data_folder_is_found(tmp_path):
    write_parquet(tmp_path / "table" / "data" / "train.parquet", pictures(6))
    assert load(tmp_path / "table", tmp_path, image="img", label="fine").class_names == ["cat", "dog", "oak"]


def test_superclasses_that_are_not_asked_for_are_not_read(tmp_path):
    write_parquet(tmp_path / "table" / "train.parquet", pictures(6))
    source = load(tmp_path / "table", tmp_path, image="img", label="fine")
    assert source.superclass_names == [] and set(source.train.superclasses.tolist()) == {-1}


@pytest.mark.parametrize("role", ["image", "label", "superclass"])
def test_an_unknown_column_is_refused_with_the_legal_ones(tmp_path, role):
    write_parquet(tmp_path / "table" / "train.parquet", pictures(3))
    columns = {"image": "img", "label": "fine", "superclass": "coarse", role: "colour"}
    with pytest.raises(UserError, match=f"column for {role}: got 'colour'.* have img, fine, coarse, number"):
        load(tmp_path / "table", tmp_path, **columns)


@pytest.mark.parametrize("role", ["image", "label", "superclass"])
def test_a_column_of_the_wrong_kind_is_refused(tmp_path, role):
    write_parquet(tmp_path / "table" / "train.parquet", pictures(3))
    columns = {"image": "img", "label": "fine", "superclass": "coarse", role: "number"}
    with pytest.raises(UserError, match="_column=number at"):
        load(tmp_path / "table", tmp_path, **columns)


def test_an_image_of_a_table_is_named_by_its_row(tmp_path):
    write_parquet(tmp_path / "table" / "train.parquet", [*pictures(4), Image.fromarray(pixels(5, (8, 9)))])
    with pytest.raises(UserError, match="row 4 of train is 9x8, expected 8x8"):
        load(tmp_path / "table", tmp_path, image="img", label="fine")


def test_a_missing_image_of_a_table_is_named_by_its_row(tmp_path):
    write_parquet(tmp_path / "table" / "train.parquet", [*pictures(2), None])
    with pytest.raises(UserError, match="row 2 of train"):
        load(tmp_path / "table", tmp_path, image="img", label="fine")


def test_a_parquet_file_that_is_none_is_refused(tmp_path, folder):
    folder.mkdir()
    (folder / "train.parquet").write_bytes(b"half a download")
    with pytest.raises(UserError, match=str(folder)):
        load(folder, tmp_path)


def test_a_local_table_names_no_files_of_the_machine(tmp_path):
    """They may be anybody's, and may change without the table."""
    import pyarrow.parquet as pq

    write_image(tmp_path / "mine.png")
    file = tmp_path / "table/train.parquet"
    write_parquet(file, pictures(6))
    table = pq.read_table(file)
    cells = [*table["img"].to_pylist()[:5], {"bytes": None, "path": str(tmp_path / "mine.png")}]
    pq.write_table(table.set_column(0, table.schema.field("img"), [cells]), file)
    with pytest.raises(UserError, match=r"row 5 of train .*mine\.png.* holds no bytes; write the table again"):
        load(tmp_path / "table", tmp_path, image="img", label="fine")


def write_table(path: Path, labels: list[Any], label: Any = ("cat", "dog"), image: Any = None, seed: int = 0) -> None:
    """A table of `image` and `label`, the latter a ClassLabel of these names or a type; labels are not checked."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Features
    from datasets import Image as ImageFeature

    kind = ClassLabel(names=list(label)) if isinstance(label, tuple) else label
    cells: list[Any] = []
    for picture in pictures(len(labels), 100 * seed):
        file = io.BytesIO()
        picture.save(file, "PNG")
        cell = {"bytes": file.getvalue(), "path": None}
        cells.append(cell if image is None else [cell])
    schema = Features({"image": image or ImageFeature(), "label": kind}).arrow_schema
    rows = [{"image": cell, "label": value} for cell, value in zip(cells, labels, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ([0, 1] * 5, [-1] * 4, HELD_OUT),
        ([0, 1] * 5, [None] * 4, HELD_OUT),
        ([0, 1] * 5, None, HELD_OUT),
        ([0, 1, -1, 0, None, 1], [0, -1, 1], TRAIN_AND_TEST),
    ],
    ids=["unlabelled test", "empty test labels", "no test", "some unlabelled"],
)
@pytest.mark.parametrize("text", [False, True])
def test_rows_without_a_label_are_left_out_and_counted(tmp_path, capsys, train, test, expected, text):
    from datasets import Value

    kind = Value("string") if text else ("cat", "dog")
    for split, labels in (("train", train), ("test", test)):
        if labels is not None:
            named = [["cat", "dog", None][-1 if label is None else label] for label in labels]
            write_table(tmp_path / f"table/{split}.parquet", named if text else labels, kind)
    source = load(tmp_path / "table", tmp_path / "cache")
    assert counts(source) == expected
    assert ("without a label" in capsys.readouterr().out) == any(
        label in (None, -1) for label in [*train, *(test or [])]
    )
    if expected is TRAIN_AND_TEST:
        for image, row in zip(source.train.images, (0, 1, 3, 5), strict=True):
            assert torch.equal(image, torch.from_numpy(pixels(row)).permute(2, 0, 1))


def test_pixels_stay_with_their_labels_over_shards_and_folders(tmp_path):
    root = tmp_path / "set [1] *"
    for shard in range(3):
        write_table(root / f"default/train/{shard:04d}.parquet", [0, 1, 0, 1], seed=shard)
    write_table(root / "default/validation/0000.parquet", [1, 0], seed=9)
    source = load(root, tmp_path / "cache")
    assert source.train.labels.tolist() == [0, 1] * 6 and source.test.labels.tolist() == [1, 0]
    for row in range(12):
        assert torch.equal(
            source.train.images[row], torch.from_numpy(pixels(100 * (row // 4) + row % 4)).permute(2, 0, 1)
        )


@pytest.mark.parametrize("name", ["training-0.parquet", "my_train.PARQUET", "0000.parquet"])
def test_a_training_table_is_found_by_its_usual_names(tmp_path, name):
    write_table(tmp_path / "table" / name, [0, 1] * 5)
    assert counts(load(tmp_path / "table", tmp_path / "cache")) == HELD_OUT


def test_images_beside_metadata_as_a_table_are_read(tmp_path, folder):
    lay_out(folder, {"cat": 5, "dog": 5})
    write_table(folder / "metadata.parquet", [0, 1])
    assert counts(load(folder, tmp_path / "cache")) == HELD_OUT


def test_tables_and_what_they_hold_must_be_clear(tmp_path):
    from datasets import Image as ImageFeature
    from datasets import List, Value

    cases: list[tuple[dict[str, tuple], str]] = [
        ({"train": ([-1] * 4,)}, "no row of train at .* has a label"),
        ({"train": ([0, 1], ("cat", "dog")), "test": ([0, 1], ("dog", "cat"))}, "test split has other class names"),
        ({"train-0": ([0, 1], ("cat", "dog")), "train-1": ([0, 1], ("dog", "cat"))}, "other class names than the rest"),
        ({"a/train": ([0, 1],), "b/train": ([0, 1],)}, "train split has parquet files in 2 folders"),
        (
            {"train": ([0, 1] * 3, ("cat", "dog", "owl")), "test": ([2], ("cat", "dog", "owl"))},
            "no training images of owl",
        ),
        ({"train": ([0, 1] * 3,), "test": ([0],)}, "no images of dog in the test split"),
        ({"train": ([0, 0, 0], ("cat",))}, "has one class"),
        ({"train": ([0, 1], Value("int64"))}, r"must be of type ClassLabel.*cast_column\('label', ClassLabel"),
        ({"train": ([0.0, 1.0], Value("float32"))}, "must be of type ClassLabel"),
        (
            {"train": ([0, 1], ("cat", "dog"), List(ImageFeature()))},
            r"must be of type Image.*cast_column\('image', Image",
        ),
        ({"train": ([0, 1, 2],)}, "row 2 of train at .* has the label 2: legal are 0 to 1, and -1 for none"),
        ({"train": ([0, 1, 1, 0], ("cat", "dog")), "test": ([0, -2],)}, "row 1 of test at .* has the label -2"),
    ]
    for i, (files, message) in enumerate(cases):
        for name, content in files.items():
            write_table(
                tmp_path / str(i) / f"{name}.parquet", *content[:2], image=content[2] if len(content) > 2 else None
            )
        with pytest.raises(UserError, match=message) as caught:
            load(tmp_path / str(i), tmp_path / "cache")
        assert str(tmp_path / str(i)) in str(caught.value)


def test_a_class_label_with_names_that_no_image_has_is_refused_for_unlearning(tmp_path):
    write_table(tmp_path / "table/train.parquet", [0, 2] * 5, ("cat", "dog", "owl"))
    data = ForgetRetainDataModule("mine", str(tmp_path / "table"), 8, 3, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"no training images of dog.*the names of its ClassLabel"):
        data.prepare_data()


def test_parquet_is_not_copied_into_another_cache(tmp_path):
    write_table(tmp_path / "table/train.parquet", [0, 1] * 5)
    before = {path.name for path in tmp_path.iterdir()}
    load(tmp_path / "table", tmp_path / "cache")
    assert {path.name for path in tmp_path.iterdir()} == before | {"cache"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train", "test"], TRAIN_AND_TEST),
        (["train", "valid"], TRAIN_AND_TEST),
        (["train"], HELD_OUT),
    ],
)
def test_a_data_set_of_the_hub_has_splits_by_their_names(tmp_path, monkeypatch, names, expected):
    from datasets import Dataset, DatasetDict

    for name in names:
        labels = [0, 1] if name != "train" else [0, 1] * (5 if len(names) == 1 else 2)
        write_table(tmp_path / f"{name}.parquet", labels)
    splits = DatasetDict({name: Dataset.from_parquet(str(tmp_path / f"{name}.parquet")) for name in names})
    monkeypatch.setattr("datasets.load_dataset", lambda _: splits)
    source = load("team/pets", tmp_path / "cache")
    assert counts(source) == expected
    assert torch.equal(source.train.images[0], torch.from_numpy(pixels(0)).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/cache/hub"), "/cache/hub can't be written .*set HF_HOME"),
        (OSError(errno.EROFS, "Read-only file system", "/cache/hub"), "/cache/hub can't be written .*set HF_HOME"),
        (
            ConnectionError("no network"),
            r"is not a folder here, and can't be read as a data set \(ConnectionError: no network",
        ),
    ],
)
def test_a_hub_that_can_not_be_used_is_one_line(tmp_path, monkeypatch, error, message):
    def fail(path: str) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(UserError, match=message):
        load("team/pets", tmp_path)


# -- the real thing ----------------------------------------------------------------------------------------------


def first_rows(name: str, to: Path, count: int = 30) -> Path:
    """A folder with the first rows of a real data set; decoding all of it takes a minute."""
    if not (CIFAR / name).is_dir():
        pytest.skip(f"no real data at {CIFAR / name}")
    import pyarrow as pa
    import pyarrow.parquet as pq

    to.mkdir()
    with pq.ParquetFile(min((CIFAR / name).glob("train*.parquet"))) as file:
        pq.write_table(pa.Table.from_batches([next(file.iter_batches(count))]), to / "train-00000-of-00001.parquet")
    return to


def test_cifar10_has_its_ten_classes(tmp_path):
    source = load(first_rows("cifar10", tmp_path / "cifar10"), tmp_path, (3, 32, 32), image="img")
    expected = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    assert source.class_names == expected
    assert source.train.images.float().std() > 30  # pictures, not padding


def test_cifar100_has_its_classes_in_superclasses(tmp_path):
    folder = first_rows("cifar100", tmp_path / "cifar100", count=100)
    source = load(folder, tmp_path, (3, 32, 32), image="img", label="fine_label", superclass="coarse_label")
    assert len(source.class_names) == 100 and len(source.superclass_names) == 20
    pairs = set(zip(source.train.labels.tolist(), source.train.superclasses.tolist(), strict=True))
    assert len(pairs) == len({label for label, _ in pairs})
    experiment = OmegaConf.load(PROJECT / "configs" / "experiment" / "cifar100_forget10.yaml")
    assert set(experiment.data.forget_classes) <= set(source.class_names)
