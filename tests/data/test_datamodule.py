from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image

from safemax_pl.common.errors import UserError
from safemax_pl.data import sources
from safemax_pl.data.batch import LabelledImages, from_uint8
from safemax_pl.data.datamodule import ForgetRetainDataModule, Steps

CPU = torch.device("cpu")
PARTS = ("forget", "retain")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def digits(cache) -> ForgetRetainDataModule:
    """Digits with 3 and 5 to forget; shared, so leave it as it is."""
    return make_digits(cache, forget_classes=[3, 5])


def make_digits(cache: Path, forget_classes: list[Any] | None = None, **changes: Any) -> ForgetRetainDataModule:
    data = ForgetRetainDataModule(
        "digits", "sklearn/digits", 8, 1, forget_classes, cache_dir=str(cache), **{"forget_batch_size": 12} | changes
    )
    data.setup("fit")
    return data


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """A parquet table of six classes in three superclasses; the superclass "cat" also is the name of a class."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    folder = tmp_path_factory.mktemp("table")
    features = Features(
        {
            "image": ImageFeature(),
            "label": ClassLabel(names=["cat", "lion", "oak", "pine", "rose", "tulip"]),
            "kind": ClassLabel(names=["cat", "tree", "flower"]),
        }
    )
    labels = [i % 6 for i in range(60)]
    columns = {
        "image": [Image.fromarray(np.full((8, 8), 4 * i, dtype=np.uint8)) for i in range(60)],
        "label": labels,
        "kind": [label // 2 for label in labels],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "hugging_face")
        Dataset.from_dict(columns, features=features).to_parquet(str(folder / "train.parquet"))
    return folder


@pytest.fixture
def make_plants(table, cache, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache / "hugging_face")

    def make(forget_classes: list[Any]) -> ForgetRetainDataModule:
        data = ForgetRetainDataModule(
            "plants", str(table), 8, 1, forget_classes, superclass_column="kind", cache_dir=str(cache)
        )
        data.prepare_data()
        return data

    return make


def make_trainer(**settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", **quiet, enable_model_summary=False, **settings)


def assert_equal(one: LabelledImages, other: LabelledImages) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def images_in(images: torch.Tensor, pool: torch.Tensor) -> bool:
    """Whether every image is one of the pool."""
    known = {tuple(image) for image in pool.flatten(1).tolist()}
    return all(tuple(image) in known for image in images.flatten(1).tolist())


# -- classes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "labels"),
    [
        ([2], [2]),
        (["oak"], [2]),
        (["tulip", 0], [0, 5]),
        ([4, 4, "rose"], [4]),
        (["flower"], [4, 5]),
        (["tree", "lion"], [1, 2, 3]),
        (["cat"], [0]),  # a class before a superclass of the same name
        ([], []),
    ],
    ids=str,
)
def test_classes_are_named_by_index_name_or_superclass(make_plants, wanted, labels):
    data = make_plants(wanted)
    assert data.forget_labels == labels
    assert data.retain_labels == [label for label in range(6) if label not in labels]


def test_an_unknown_class_is_refused_and_the_nearest_suggested(make_plants):
    with pytest.raises(UserError, match=r"'tulpi': did you mean 'tulip'\? legal: cat, lion.*tree, flower"):
        make_plants(["tulpi"])


def test_a_digit_can_be_named_by_its_name(cache):
    assert make_digits(cache, ["7", 3]).forget_labels == [3, 7]


@pytest.fixture
def with_names(monkeypatch, cache):
    """Resolve `data.forget_classes` for a source of these classes, which is never decoded."""

    def resolve(names: list[str], wanted: Any, superclasses: tuple[str, ...] = ()) -> list[int]:
        labels = torch.arange(len(names)).repeat(2)
        kinds = labels % len(superclasses) if superclasses else torch.full_like(labels, -1)
        split = sources.Split(torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), labels, kinds)
        source = sources.Source(split, split, names, list(superclasses), "0" * 12)
        monkeypatch.setattr(sources, "load", lambda *_: source)
        data = ForgetRetainDataModule("mine", "mine", 8, 1, wanted)
        data.prepare_data()
        return data.forget_labels

    return resolve


@pytest.mark.parametrize(
    ("names", "wanted", "labels"),
    [
        (["0", "1", "2"], [1], [1]),
        (["1990", "1991", "1992"], [1991], [1]),
        (["00008", "00010", "9"], ["00010"], [1]),
        (["0", "1", "10", "2"], ["2"], [3]),
        (["a", "b", "c"], "b", [1]),
        (["a", "b", "c"], 0, [0]),
        (["no", "yes", "null"], ["no"], [0]),
        (["caf\xe9", "tea"], ["cafe\u0301"], [0]),
        (["cafe\u0301", "tea"], ["caf\xe9"], [0]),
        (["dog [small]", "dog*"], ["dog*"], [1]),
    ],
    ids=str,
)
def test_names_win_where_no_index_is_meant(with_names, names, wanted, labels):
    assert with_names(names, wanted) == labels


@pytest.mark.parametrize(
    ("names", "wanted", "superclasses", "message"),
    [
        (
            ["0", "1", "10", "2"],
            [2],
            (),
            r"2 is both an index \(of 10\) and the name of class 2.*\[\"2\"\]' or .*\[\"10\"\]",
        ),
        (["1_0", *map(str, range(10, 0, -1))], [10], (), "10 is both an index .* and the name of class 1_0"),
        (["a", "b", "c"], [1], ("1", "x"), "1 is both an index .of b. and the name of class 1"),
        (["a", "b"], [1000.0], (), r"got 1000\.0, expected indices and names; quote names"),
        (["true", "b"], True, (), "got True.*quote names"),
        (["a", "b"], [["a"]], (), "unknown class of mine"),
        (["a", "b"], 1.5, (), "unknown class of mine"),
        (["a", "b"], {"a": 1}, (), "unknown class of mine"),
        (["a", "b"], [2], (), "got class index 2, mine has 0 to 1"),
    ],
    ids=str,
)
def test_what_may_mean_two_classes_or_none_is_refused(with_names, names, wanted, superclasses, message):
    with pytest.raises(UserError, match=message):
        with_names(names, wanted, superclasses)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_without_images_is_refused(monkeypatch, split):
    images = {"train": [0, 0, 1, 1], "test": [0, 1]} | {split: [0, 0]}
    splits = {
        name: sources.Split(
            torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), torch.tensor(labels), torch.tensor(labels)
        )
        for name, labels in images.items()
    }
    monkeypatch.setattr(sources, "load", lambda *_: sources.Source(*splits.values(), ["cat", "owl"], [], "0" * 12))
    with pytest.raises(UserError, match=f"no {split}(ing)? images of owl: give at least 3 images of every class"):
        ForgetRetainDataModule("mine", "mine", 8, 1).prepare_data()


def test_a_class_with_one_training_image_can_not_be_calibrated_on(monkeypatch):
    labels = torch.tensor([0, 0, 1])
    split = sources.Split(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), labels, labels)
    monkeypatch.setattr(sources, "load", lambda *_: sources.Source(split, split, ["cat", "owl"], [], "0" * 12))
    with pytest.raises(UserError, match="a single training image of owl: give at least 2 of every class"):
        ForgetRetainDataModule("mine", "mine", 8, 1).calibration_mask()


@pytest.mark.parametrize(("size", "channels"), [(8, 2), (8, 4), (0, 1), (-8, 3)])
def test_sizes_that_no_image_has_are_refused(size, channels):
    with pytest.raises(UserError, match=f"data.channels={channels} data.image_size={size}: give 1"):
        ForgetRetainDataModule("mine", "mine", size, channels)


@pytest.mark.parametrize("index", [10, -1])
def test_an_index_out_of_range_is_refused_with_the_range(cache, index):
    with pytest.raises(UserError, match=f"got class index {index}, digits has 0 to 9"):
        make_digits(cache, [index])


@pytest.mark.parametrize("item", [True, 3.0, None])
def test_what_is_neither_an_index_nor_a_name_is_refused(cache, item):
    with pytest.raises(UserError, match="unknown class of digits in data"):
        make_digits(cache, [item])


def test_forgetting_every_class_is_refused(cache):
    with pytest.raises(UserError, match="all 10 classes of digits: leave at least one"):
        make_digits(cache, list(range(10)))


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_forget_and_the_retain_set_are_a_partition(digits, split):
    forget, retain = digits.rows(split, "forget"), digits.rows(split, "retain")
    labels = getattr(digits.source, split).labels
    assert torch.equal(torch.cat([forget, retain]).sort().values, torch.arange(len(labels)))
    assert set(labels[forget].tolist()) == {3, 5}
    assert set(labels[retain].tolist()) == {0, 1, 2, 4, 6, 7, 8, 9}


def test_the_calibration_part_is_a_tenth_of_every_class(digits):
    labels = digits.source.train.labels
    held = labels[digits.calibration_mask()].bincount()
    assert torch.equal(held, (0.1 * labels.bincount()).round().long())


# -- batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_the_batch_of_a_step_is_always_the_same(digits, cache, part):
    other_process = make_digits(cache, forget_classes=[3, 5])
    assert_equal(digits.draw(part, 7, CPU), other_process.draw(part, 7, CPU))


@pytest.mark.parametrize("part", PARTS)
def test_every_step_has_another_batch(digits, part):
    one, other = digits.draw(part, 7, CPU), digits.draw(part, 8, CPU)
    assert not torch.equal(one.x_0, other.x_0)
    assert not set(one.keys.tolist()) & set(other.keys.tolist())


def test_another_seed_gives_other_batches(digits, cache):
    other = make_digits(cache, forget_classes=[3, 5], seed=1).draw("retain", 7, CPU)
    assert not torch.equal(other.x_0, digits.draw("retain", 7, CPU).x_0)


def test_every_row_of_a_step_has_a_key_of_its_own(digits):
    keys = torch.cat([digits.draw(part, 7, CPU).keys for part in PARTS])
    assert keys.unique().numel() == 12 + 96


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_the_shares_of_all_ranks_are_the_batch_of_one(digits, part, world_size):
    shares = [digits.draw(part, 5, CPU, rank, world_size) for rank in range(world_size)]
    together = LabelledImages(*(torch.stack(fields, 1).flatten(0, 1) for fields in zip(*shares, strict=True)))
    assert_equal(together, digits.draw(part, 5, CPU))


def test_a_batch_has_the_sizes_types_and_range_that_it_promises(digits):
    forget, retain = (digits.draw(part, 0, CPU) for part in PARTS)
    assert forget.x_0.shape == (12, 1, 8, 8) and retain.x_0.shape == (96, 1, 8, 8)
    assert forget.x_0.dtype == torch.float32 and forget.labels.dtype == forget.keys.dtype == torch.long
    assert retain.x_0.min() == -1 and retain.x_0.max() == 1


def test_forget_batches_have_forget_labels_and_retain_batches_the_others(cache):
    data = make_digits(cache, [3, 5], forget_batch_size=500, retain_batch_size=500)
    assert set(data.draw("forget", 0, CPU).labels.tolist()) == {3, 5}
    assert set(data.draw("retain", 0, CPU).labels.tolist()) == {0, 1, 2, 4, 6, 7, 8, 9}


def test_images_come_with_their_own_labels(digits):
    batch, train = digits.draw("retain", 0, CPU), digits.source.train
    label_of = dict(zip(map(tuple, from_uint8(train.images).flatten(1).tolist()), train.labels.tolist(), strict=True))
    assert [label_of[tuple(image)] for image in batch.x_0.flatten(1).tolist()] == batch.labels.tolist()


def test_all_rows_are_drawn_about_equally_often(cache):
    data = make_digits(cache, [3], retain_batch_size=13_000)
    labels = data.source.train.labels[data.rows("train", "retain")]
    drawn = data.draw("retain", 0, CPU)
    assert drawn.x_0.flatten(1).unique(dim=0).shape[0] > 0.99 * len(labels)
    shares, expected = (x.bincount(minlength=10) / len(x) for x in (drawn.labels, labels))
    assert (shares - expected).abs().max() < 0.02


def test_no_batch_is_drawn_from_an_empty_part(cache):
    assert make_digits(cache, forget_classes=[]).draw("forget", 0, CPU) is None
    assert make_digits(cache, forget_classes=[3], forget_batch_size=0).draw("forget", 0, CPU) is None


def test_about_half_of_the_images_are_mirrored(cache):
    plain = make_digits(cache, [3], retain_batch_size=1000).draw("retain", 0, CPU)
    flipped = make_digits(cache, [3], retain_batch_size=1000, flip=True).draw("retain", 0, CPU)
    same = (flipped.x_0 == plain.x_0).flatten(1).all(dim=1)
    mirrored = (flipped.x_0 == plain.x_0.flip(-1)).flatten(1).all(dim=1)
    assert (same | mirrored).all()
    assert 430 < (mirrored & ~same).sum() < 570
    assert torch.equal(flipped.labels, plain.labels)


def test_rows_that_are_left_out_are_never_drawn(cache):
    sizes = {"forget_batch_size": 2000, "retain_batch_size": 2000}
    data = make_digits(cache, [3], exclude_calibration=True, **sizes)
    kept = from_uint8(data.source.train.images[~data.calibration_mask()])
    for part in PARTS:
        assert images_in(data.draw(part, 0, CPU).x_0, kept)
    everything = make_digits(cache, [3], **sizes).draw("forget", 0, CPU).x_0
    assert not images_in(everything, kept)


def test_lightning_gets_one_token_per_step(cache):
    data = make_digits(cache, [3])
    data.trainer = make_trainer(max_steps=7)
    loader = data.train_dataloader()
    assert isinstance(loader, Steps) and len(loader) == 7
    assert list(loader) == list(loader) == list(range(7))


def test_a_token_becomes_the_batches_of_the_trainers_step(cache, digits):
    data = make_digits(cache, [3, 5])
    data.trainer = make_trainer(max_steps=7)
    batches = data.transfer_batch_to_device(4, CPU, 0)
    assert list(batches) == ["forget", "retain"]
    for part in PARTS:  # the step is the trainer's, 0, as after a resume the loader counts anew
        assert_equal(batches[part], digits.draw(part, 0, CPU))


@pytest.mark.parametrize("part", PARTS)
def test_a_batch_size_that_does_not_divide_by_the_devices_is_refused(cache, part):
    data = make_digits(cache, [3], **{"forget_batch_size": 12, "retain_batch_size": 12, f"{part}_batch_size": 32})
    data.trainer = make_trainer(max_steps=7, devices=3)
    with pytest.raises(UserError, match=f"data.{part}_batch_size=32 does not divide by 3 devices"):
        data.train_dataloader()


# -- chunks ------------------------------------------------------------------------------------------------------


def all_chunks(data: ForgetRetainDataModule, part: str, size: int) -> LabelledImages:
    chunks = [data.chunk(part, i, size, CPU) for i in range(data.chunks(part, size))]
    assert all(len(chunk.keys) == size for chunk in chunks[:-1]) and 0 < len(chunks[-1].keys) <= size
    return LabelledImages(*(torch.cat(fields) for fields in zip(*chunks, strict=True)))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("size", [7, 100, 10_000])
def test_the_chunks_hold_every_image_of_a_part_once(digits, part, size):
    rows, train = digits.rows("train", part), digits.source.train
    chunks = all_chunks(digits, part, size)
    assert len(chunks.keys) == len(rows)
    found, expected = (
        sorted(zip(map(tuple, images.flatten(1).tolist()), labels.tolist(), strict=True))
        for images, labels in ((chunks.x_0, chunks.labels), (from_uint8(train.images[rows]), train.labels[rows]))
    )
    assert found == expected


@pytest.mark.parametrize("part", PARTS)
def test_the_order_of_the_chunks_is_shuffled_by_the_seed_whatever_their_size(digits, cache, part):
    assert_equal(all_chunks(digits, part, 7), all_chunks(digits, part, 50))
    other = all_chunks(make_digits(cache, [3, 5], seed=1), part, 50)
    assert not torch.equal(other.labels, all_chunks(digits, part, 50).labels)
    assert not torch.equal(other.keys.sort().values, all_chunks(digits, part, 50).keys.sort().values)


def test_the_keys_of_chunks_are_not_those_of_training_steps(digits):
    """Or a preparation would be computed from the very noise that is trained on."""
    chunks = torch.cat([all_chunks(digits, part, 100).keys for part in PARTS])
    steps = torch.cat([digits.draw(part, step, CPU).keys for part in PARTS for step in range(20)])
    assert chunks.unique().numel() == len(chunks) == len(digits.source.train.labels)
    assert not torch.isin(chunks, steps).any()


def test_chunks_are_mirrored_like_batches(cache):
    plain, flipped = (all_chunks(make_digits(cache, [3], flip=flip), "retain", 500) for flip in (False, True))
    mirrored = (flipped.x_0 == plain.x_0.flip(-1)).flatten(1).all(dim=1)
    assert ((flipped.x_0 == plain.x_0).flatten(1).all(dim=1) | mirrored).all()
    assert 0.4 < mirrored.float().mean() < 0.6
