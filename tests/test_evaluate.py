"""Scoring again: the same numbers to the last digit, other protocols, other people's folders."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers import cached, tiny
from safetensors.torch import load_file

from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT
from safemax_pl.runs.evaluate import evaluate
from safemax_pl.runs.subject import warn_of_other_classes
from safemax_pl.training.fit import fit


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(tiny(tmp_path_factory.mktemp("runs")), "tiny")


def test_a_run_is_scored_to_the_same_last_digit(run):
    out = evaluate(str(run), [cached()])
    assert out == run / "evaluations" / "same"
    first, again = (json.loads((folder / "metrics.json").read_text()) for folder in (run, out))
    assert first["scores"] == again["scores"] and first["protocol"] == again["protocol"]
    assert (out / "samples.png").exists()


def test_the_first_images_of_every_class_are_kept_for_the_report(tmp_path):
    plan = ["evaluation.plans.standard.forget_per_class=10", "evaluation.plans.standard.retain_total=27"]
    folder = fit(tiny(tmp_path, "evaluation.guidance=[0,2]", "data.forget_classes=[3]", *plan), "kept")
    kept = load_file(folder / "samples.safetensors")
    assert set(kept) == {"labels", "seeds", "w=0/original", "w=0/unlearned", "w=2/original", "w=2/unlearned"}
    assert kept["seeds"][kept["labels"] == 3].tolist() == list(range(8))  # of 10
    assert torch.bincount(kept["labels"]).tolist() == [3, 3, 3, 8, 3, 3, 3, 3, 3, 3]
    images = kept["w=0/unlearned"]
    assert images.shape == (35, 1, 8, 8) and images.dtype == torch.uint8 and images.float().std() > 30
    assert not torch.equal(images, kept["w=0/original"]) and not torch.equal(images, kept["w=2/unlearned"])


def test_a_change_of_protocol_goes_to_a_folder_of_its_own(run):
    changes = ["sampler=dpm_solver", "sampler.steps=4", "evaluation.guidance=[1]"]
    out = evaluate(str(run), [*changes, cached()])
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["protocol"]["sampler"]["name"] == "dpm_solver" and set(metrics["scores"]) == {"w=1"}
    assert json.loads((run / "metrics.json").read_text())["protocol"]["sampler"]["name"] == "ddim"


def test_a_plain_diffusers_folder_is_scored_against_the_base_model(tmp_path, monkeypatch):
    for part in ("unet", "scheduler"):
        shutil.copytree(PROJECT / "weights/digits" / part, tmp_path / "theirs" / part)
    monkeypatch.chdir(tmp_path)
    small = [
        "data=digits", "data.forget_classes=[3]", cached(), "trainer=cpu", "sampler.steps=3",
        "trainer.enable_progress_bar=false", "evaluation.guidance=[0]", "evaluation.batch_size=16",
        "evaluation.plans.standard.forget_per_class=4", "evaluation.plans.standard.retain_total=18",
    ]  # fmt: skip
    metrics = json.loads((evaluate("theirs", small) / "metrics.json").read_text())
    models = metrics["scores"]["w=0"]
    assert models["unlearned"]["drift"] == 0  # it is the base model itself
    assert models["unlearned"]["ua"] == models["original"]["ua"]


def test_mistakes_are_named(run, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        evaluate(str(tmp_path / "nothing"), [])
    with pytest.raises(UserError, match=r"did you mean 'sampler\.steps'"):
        evaluate(str(run), ["sampler.step=3"])
    with pytest.raises(UserError, match=r"sampler\.steps='many': expected a number"):
        evaluate(str(run), ["sampler.steps=many"])
    with pytest.raises(UserError, match="unknown sampler"):
        evaluate(str(run), ["sampler=euler"])
    (tmp_path / "half").mkdir()
    shutil.copy(run / "config.yaml", tmp_path / "half")
    with pytest.raises(UserError, match="unfinished"):
        evaluate(str(tmp_path / "half"), [])
    with pytest.raises(
        UserError, match=r"neither a run .* nor a diffusers folder .*: give one of the runs in it: .*/half"
    ):
        evaluate(str(tmp_path), [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither a run .*: give the folder of a run, or a diffusers folder"):
        evaluate(str(tmp_path / "empty"), [])


def test_scoring_other_classes_than_were_forgotten_is_said(run, capsys):
    for label, said in (
        (3, ""),
        (
            4,
            f"warning: {run} forgot 3, and these scores are of 4 (data.forget_classes): leave data.forget_classes out "
            "to score 3\n",
        ),
    ):
        warn_of_other_classes(run, SimpleNamespace(class_names=list("0123456789"), forget_labels=[label]))
        assert capsys.readouterr().err == said
