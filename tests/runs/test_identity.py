"""The same command on other data, another base model or another classifier is refused, whatever the path says."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import TINY_CLASSIFIER as CLASSIFIER
from helpers import tiny
from PIL import Image

from safemax_pl.classifier.model import Classifier
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.data import sources
from safemax_pl.diffusion.saved_model import pretrained, save_model
from safemax_pl.runs import identity
from safemax_pl.runs.evaluate import evaluate
from safemax_pl.training.fit import fit
from safemax_pl.training.fit_classifier import fit_classifier
from safemax_pl.training.module import UnlearningModule

COLUMNS = {"image": "image", "label": "label", "superclass": None}


def digits(folder: Path, order: int = 1, changed: bool = False) -> Path:
    """The digits as an image folder with the splits of the shipped models, in any order of the files."""
    source = sources.load(sources.DIGITS, COLUMNS, (1, 8, 8), False, folder / "cache")
    for split in ("train", "test"):
        images, labels, _ = getattr(source, split)
        for i, (image, label) in enumerate(zip(images.numpy(), labels.tolist(), strict=True)):
            path = folder / "data" / split / str(label) / f"{i if order > 0 else 9999 - i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 - image[0] if changed and i == 0 else image[0]).save(path)
    return folder / "data"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("digits")
    return {
        "sorted": digits(made / "sorted"),
        "reversed": digits(made / "reversed", order=-1),
        "other": digits(made / "other", changed=True),
        "cache": made / "cache",
    }


def on(folders: dict[str, Path], which: str) -> list[str]:
    return [f"data.path={folders[which]}", f"data.cache_dir={folders['cache']}"]


def source(folders: dict[str, Path], which: str) -> sources.Source:
    return sources.load(str(folders[which]), COLUMNS, (1, 8, 8), False, folders["cache"])


def test_the_order_of_the_rows_is_no_other_data_and_one_image_is(folders):
    shipped = sources.load(sources.DIGITS, COLUMNS, (1, 8, 8), False, folders["cache"])
    same, other = source(folders, "reversed"), source(folders, "other")
    assert same.fingerprint != shipped.fingerprint and same.content == shipped.content
    assert same.holds(shipped.hashes()) and not other.holds(shipped.hashes())


def test_labels_and_splits_are_part_of_the_data():
    images, labels = torch.arange(8, dtype=torch.uint8).reshape(4, 1, 1, 2), torch.tensor([0, 0, 1, 1])
    one = sources.Split(images[:2], labels[:2], labels[:2])
    two = sources.Split(images[2:], labels[2:], labels[2:])
    relabelled = one._replace(labels=torch.tensor([0, 1]))
    names = ["a", "b"]
    found = {sources.content_digest(*splits, names) for splits in ((one, two), (two, one), (relabelled, two))}
    found.add(sources.content_digest(one, two, ["a", "c"]))
    assert len(found) == 4


def test_models_made_from_other_data_with_the_same_class_names_are_refused(folders, tmp_path):
    """As MNIST's for Fashion-MNIST: classes 0 to 9 both."""
    data = {which: build(compose("fit", ["data=digits", *on(folders, which)]).data) for which in ("reversed", "other")}
    for folder in (PROJECT / "weights/digits/classifier", PROJECT / "weights/digits/second_classifier"):
        with pytest.raises(UserError, match=r"classifier .* was trained on other data \(fingerprint 633470c0fd21; "):
            Classifier.load(folder, data["other"])
    with pytest.raises(UserError, match=r"the model at .* was trained on other data"):
        pretrained(data["other"], str(PROJECT / "weights/digits"))
    ours = build(compose("fit", ["data=digits", f"data.cache_dir={folders['cache']}"]).data)
    save_model(pretrained(ours, str(PROJECT / "weights/digits")), ours, tmp_path / "base")
    assert pretrained(data["reversed"], str(tmp_path / "base")).weights_digest
    with pytest.raises(UserError, match="other data"):
        pretrained(data["other"], str(tmp_path / "base"))


def interrupted(monkeypatch, at: int) -> None:
    step = UnlearningModule.training_step

    def broken(self, batch, batch_idx):
        if self.global_step == at:
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(UnlearningModule, "training_step", broken)


def test_a_fit_goes_on_and_is_shown_with_its_own_data_and_models_only(folders, tmp_path, monkeypatch):
    base, classifier = tmp_path / "base", tmp_path / "classifier"
    shutil.copytree(PROJECT / "weights/digits", base)
    shutil.copytree(PROJECT / "weights/digits/classifier", classifier)
    # As before 0.3.0, and as other programs write them
    for path in (base / "data.json", classifier / "config.json"):
        content = json.loads(path.read_text())
        content.pop("fingerprint", None)
        content.get("info", {}).pop("data", None)
        path.write_text(json.dumps(content))
    ours = [f"model.path={base}", f"classifier={classifier}", "second_classifier=null", "trainer.max_steps=4"]

    def run(which: str) -> Path:
        return fit(tiny(tmp_path, *ours, *on(folders, which)), "run")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        interrupted(patch, at=3)
        run("sorted")
    with pytest.raises(UserError, match=r"run was made from other data \(fingerprint .*give another name="):
        run("other")
    assert torch.load(tmp_path / "run/last.ckpt", weights_only=False)["global_step"] == 2
    run("reversed")  # the same images: goes on
    monkeypatch.setattr("safemax_pl.training.fit.train", None)  # shown, not trained
    assert run("sorted") == tmp_path / "run"
    with pytest.raises(UserError, match="was made from other data"):
        run("other")
    with pytest.raises(UserError, match="does not exist"):
        fit(tiny(tmp_path, *ours, "data.path=/nowhere"), "run")
    weights, kept = classifier / "model.safetensors", (classifier / "model.safetensors").read_bytes()
    shutil.copy(PROJECT / "weights/digits/second_classifier/model.safetensors", weights)
    for again in (lambda: run("sorted"), lambda: evaluate(str(tmp_path / "run"), [])):
        with pytest.raises(UserError, match=r"another classifier|can't be read"):
            again()
    weights.write_bytes(kept)
    shutil.copytree(PROJECT / "weights/digits/without_3/unet", base / "unet", dirs_exist_ok=True)
    for again in (lambda: run("sorted"), lambda: evaluate(str(tmp_path / "run"), [])):
        with pytest.raises(UserError, match=r"run was made with another base model .*model\.path now has"):
            again()


def test_a_classifier_is_shown_for_its_own_data_only(folders, tmp_path):
    def run(which: str) -> Path:
        place = ["logger=csv", f"runs_dir={tmp_path}"]
        return fit_classifier(compose("fit_classifier", [*CLASSIFIER, *place, *on(folders, which)]), "classifier")

    run("sorted")
    run("reversed")
    with pytest.raises(UserError, match="was made from other data"):
        run("other")
    (tmp_path / "classifier" / identity.FILE).unlink()  # as of a run before 0.5.0
    with pytest.raises(UserError, match="was made from other data"):
        run("other")


def test_a_fit_that_can_not_take_a_step_leaves_its_name_free(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        interrupted(patch, at=0)
        fit(tiny(tmp_path), "run")
    assert not (tmp_path / "run/config.yaml").exists()
    fit(tiny(tmp_path, "optimizer.lr=1e-3"), "run")
    assert json.loads((tmp_path / "run" / identity.FILE).read_text())["data"]["fingerprint"] == "633470c0fd21"


def test_a_finished_run_of_a_hub_s_data_is_shown_where_they_are_not(tmp_path):
    """Without the network and without the images: there is nothing to compare."""
    cfg = compose("fit", ["experiment=cifar10_forget1", f"data.cache_dir={tmp_path}"])
    assert identity.of_config(cfg, build(cfg.data)) == {}
    identity.check("runs/a", {"data": {"fingerprint": "a"}, "classifier": "b"}, {})
