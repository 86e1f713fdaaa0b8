"""The attack command: what it writes, that it resumes, what it refuses."""

import csv
import json
import shutil
import subprocess
import sys

import pytest
from helpers import tiny
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

from safemax_pl.attack import check
from safemax_pl.attacks.arguments import NAMES
from safemax_pl.attacks.attack import attack, print_block
from safemax_pl.attacks.null_leak import NullLeak
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT
from safemax_pl.runs.evaluate import evaluate
from safemax_pl.training.fit import fit

SMALL = [
    "sampler=dpm_solver",
    "sampler.steps=4",
    "attacks.sampler_transfer.samplers=[{name: ddim, steps: [3]}]",
    "attacks.sampler_transfer.guidance_weights=[0]",
    "attacks.null_leak.guidance_weights=[-1,0]",
    "attacks.late_start.starts=[0.5,0.9]",
    "attacks.noised_trajectory.starts=[0.5,0.9]",
    "attacks.initial_noise.candidates=[1,2]",
    "attacks.classifier_guidance.scales=[0,1]",
    "attacks.embedding_interpolation.weights=[0,1]",
    "attacks.embedding_interpolation.starts=1",
    "attacks.relearning.images=[1,10]",
    "attacks.relearning_without_class.samples_per_class=1",
    "attacks.quantise.bits=[4]",
    "attacks.prune.shares=[0.1]",
    "attacks.linear_probe.times=[0.1]",
    "attacks.linear_probe.train_per_class=8",
    "attacks.task_vector.factors=[0,1]",
    *(f"attacks.{name}.images_per_class=4" for name in NAMES),
    *(
        f"attacks.{name}.budget.{key}"
        for name in ("embedding_inversion", "relearning", "relearning_without_class", "benign_finetune", "task_vector")
        for key in ("score_at=[0,2]", "batch_size=4")
    ),
]


def small(*names: str) -> list[str]:
    """Budgets of these attacks, or of all."""
    return [item for item in SMALL if not item.startswith("attacks.") or item.split(".")[1] in (names or NAMES)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")  # with a cache of its own, as curves in it are damaged
    run = fit(tiny(folder, "data.forget_classes=[3]", f"data.cache_dir={folder}/cache"), "tiny")
    SMALL.append(f"data.cache_dir={run.parent}/cache")
    yield run
    SMALL.pop()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """The base model in a diffusers folder with nothing of ours."""
    folder = tmp_path_factory.mktemp("theirs") / "theirs"
    for part in ("unet", "scheduler"):
        shutil.copytree(PROJECT / "weights/digits" / part, folder / part)
    config = folder / "scheduler" / "scheduler_config.json"  # another digest, so that no curve is shared by the cache
    config.write_text(json.dumps(json.loads(config.read_text()) | {"clip_sample_range": 2.0}))
    return folder


@pytest.fixture(scope="module")
def attacked(run, theirs):
    attack(str(run), ["attack=all", f"retrain={theirs}", *small()])
    return json.loads((run / "metrics.json").read_text())["attacks"]


def test_all_attacks_leave_a_number_a_curve_and_a_picture_in_the_run(run, attacked):
    assert list(attacked) == NAMES and len(NAMES) == 15
    for block in attacked.values():
        values = block["headline"]["values"]
        assert {"unlearned", "original", "retrain"} <= set(values)
        assert ("normal_noise" in values) == ("uniform_noise" in values)
        folder = run / block["folder"]
        with Image.open(folder / "figure.png") as image:
            image.verify()
        with (folder / "curve.csv").open() as file:
            rows = list(csv.DictReader(file))
        curves = block["curves"]
        assert len(rows) == sum(len(points) for by in curves.values() for points in by.values())
        assert [float(row[block["measure"]]) for row in rows if row["model"] == "original"] == [
            y for points in curves["original"].values() for _, y in points
        ]
        assert all(images.shape == (4, 1, 8, 8) for images in load_file(folder / "images.safetensors").values())


def test_retrain_is_attacked_as_a_model_of_its_own(attacked):
    for block in attacked.values():
        assert len(set(block["weights"].values())) == 3
        assert block["headline"]["values"]["retrain"] == block["headline"]["values"]["original"]


def test_an_attack_says_what_it_was_worth_and_how_it_was_scored(attacked):
    protocol = attacked["relearning"]["protocol"]
    assert protocol["attack"]["images"] == {"1 image": 1, "10 images": 10} and protocol["attack"]["budget"][
        "score_at"
    ] == [0, 2]
    assert protocol["sampler"]["steps"] == 4 and protocol["classifier"] and protocol["original"]
    assert attacked["relearning"]["headline"]["limit"] == 2


def test_the_accuracy_of_the_classifier_stands_below_the_table(run, attacked, capsys):
    print_block(attacked["null_leak"])
    classifier = json.loads((run / "metrics.json").read_text())["classifiers"]["classifier"]
    assert f"Classifier accuracy {classifier['accuracy']:.3f} plain" in capsys.readouterr().out


def test_the_scores_of_the_run_stay(run, attacked):
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"scores", "protocol", "training"} <= set(metrics)
    again = evaluate(str(run), [f"data.cache_dir={run.parent}/cache"])
    assert json.loads((again / "metrics.json").read_text())["scores"] == metrics["scores"]


def test_finished_curves_are_not_made_again(run, attacked, monkeypatch):
    def broken(*_):
        raise AssertionError("attacked again")

    monkeypatch.setattr(NullLeak, "curve", broken)
    attack(str(run), ["attack=null_leak", *small("null_leak")])
    again = json.loads((run / "metrics.json").read_text())["attacks"]
    assert again["null_leak"]["curves"]["unlearned"] == attacked["null_leak"]["curves"]["unlearned"]
    with pytest.raises(AssertionError, match="attacked again"):
        attack(str(run), ["attack=null_leak", *small("null_leak"), "attacks.null_leak.images_per_class=5"])


def test_a_damaged_curve_is_made_again(run, theirs, attacked):
    for path in (run.parent / "cache" / "attacks").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:50])
    with pytest.warns(UserWarning, match="is damaged"):
        attack(str(run), ["attack=[null_leak]", f"retrain={theirs}", *small("null_leak")])
    again = json.loads((run / "metrics.json").read_text())["attacks"]["null_leak"]
    assert again["curves"] == attacked["null_leak"]["curves"]


def test_a_model_that_others_saved_is_attacked(theirs, tmp_path):
    ours = ["data=digits", "data.forget_classes=[3]", "trainer=cpu", f"runs_dir={tmp_path}/runs"]
    ours += [f"data.cache_dir={tmp_path}/cache", "trainer.enable_progress_bar=false"]
    folder = attack(str(theirs), ["attack=late_start", *ours, *small("late_start")])
    values = json.loads((folder / "metrics.json").read_text())["attacks"]["late_start"]["headline"]["values"]
    assert folder.parent == tmp_path / "runs" and folder.name.startswith("evaluate_theirs-")
    assert values["unlearned"] == values["original"] < 0.3  # it is the base model itself


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which attack"),
        (["attack"], "got 'attack', expected key=value"),
        (["attack=relearn"], "did you mean 'relearning'"),
        (["attack=relearning", "attacks.relearning.budget.rat=1"], r"did you mean .*budget\.rate"),
        (["attack=relearning", "attacks.null_leak.images_per_class=3"], "attacks.null_leak"),
        (["attack=null_leak", "data.forget_classes=[]"], "nothing was forgotten"),
        (["attack=null_leak", "retrain=nowhere"], "retrain=nowhere .*give a run of unlearner=retrain"),
        (["attack=relearning", "attacks.relearning.images=10"], r"attacks\.relearning\.images=10: expected a list"),
        (["attack=null_leak", "attacks.null_leak.images_per_class=ten"], r"='ten': expected a number"),
    ],
)
def test_mistakes_are_named(run, arguments, message):
    with pytest.raises(UserError, match=message):
        attack(str(run), arguments)


def test_a_setting_of_another_command_is_named(run):
    with pytest.raises(UserError, match="unknown setting of this command 'retrains': did you mean 'retrain'"):
        check([str(run)], ["attack=null_leak", "retrains=[a,b]"])


def test_a_retrain_that_knows_the_class_is_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"has seen images of \[3\]"):
        attack(str(run), ["attack=null_leak", f"retrain={run}"])
    shutil.copytree(run, tmp_path / "other")
    config = tmp_path / "other" / "config.yaml"
    retrain = OmegaConf.load(config)
    retrain.unlearner = OmegaConf.load(PROJECT / "configs/unlearner/retrain.yaml")
    retrain.data.forget_classes = [5]
    OmegaConf.save(retrain, config)
    with pytest.raises(UserError, match=r"has seen images of \[3\]"):
        attack(str(run), ["attack=null_leak", f"retrain={tmp_path / 'other'}"])
    retrain.data.forget_classes = 3
    OmegaConf.save(retrain, config)
    attack(str(run), ["attack=null_leak", f"retrain={tmp_path / 'other'}", *small("null_leak")])


def test_an_earlier_result_of_an_attack_stays(run, attacked):
    attack(str(run), ["attack=null_leak", *small("null_leak"), "attacks.null_leak.images_per_class=3"])
    kept = json.loads((run / attacked["null_leak"]["folder"] / "result.json").read_text())
    assert kept["curves"] == attacked["null_leak"]["curves"]
    assert json.loads((run / "metrics.json").read_text())["attacks"]["null_leak"]["folder"] != kept["folder"]


def test_the_command_explains_itself():
    done = subprocess.run(
        [sys.executable, "-m", "safemax_pl.attack"], capture_output=True, text=True, cwd=PROJECT, check=True
    )
    assert "attack=all" in done.stdout and "embedding_inversion" in done.stdout
