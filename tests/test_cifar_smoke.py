"""The whole path on real CIFAR-10: classifier, base model, unlearning, evaluation, by the documented experiments.

On few images and in few steps, as it is the path that is tested.
"""

import json

import pyarrow.parquet
import pytest

from safemax_pl.common.files import PROJECT
from safemax_pl.config.compose import compose
from safemax_pl.runs.evaluate import evaluate
from safemax_pl.training.fit import fit
from safemax_pl.training.fit_classifier import fit_classifier

CIFAR10 = PROJECT.parent / "shared/data/cifar10"


@pytest.mark.skipif(not CIFAR10.is_dir(), reason=f"needs CIFAR-10 as parquet files in {CIFAR10}")
def test_cifar10_smoke(tmp_path):
    (tmp_path / "cifar10").mkdir()
    for file, images in {"train-00000-of-00004.parquet": 2000, "test-00000-of-00001.parquet": 500}.items():
        pyarrow.parquet.write_table(
            pyarrow.parquet.read_table(CIFAR10 / file).slice(0, images), tmp_path / "cifar10" / file
        )
    common = [
        f"data.path={tmp_path}/cifar10",
        f"runs_dir={tmp_path}",
        f"data.cache_dir={tmp_path}/cache",
        "logger=csv",
        "trainer=cpu",
    ]
    quiet = [*common, "trainer.enable_progress_bar=false"]
    classifier = "cifar10_smoke_classifier"
    fit_classifier(compose("fit_classifier", [f"experiment={classifier}", *quiet]), classifier)
    few = ["sampler.steps=4", "evaluation.final=quick", "trainer.max_steps=20", "trainer.val_check_interval=20"]
    fit(compose("fit", ["experiment=cifar10_smoke_pretrain", *quiet, *few]), "cifar10_smoke_pretrain")
    folder = fit(compose("fit", ["experiment=cifar10_smoke", *quiet, *few]), "cifar10_smoke")

    accuracy = json.loads((tmp_path / classifier / "metrics.json").read_text())["scores"]["accuracy"]
    assert accuracy > 0.15  # chance is 0.1
    metrics = json.loads((folder / "metrics.json").read_text())
    models = metrics["scores"]["w=0"]
    assert metrics["protocol"]["forget_classes"] == ["bird"]
    assert set(models["unlearned"]["per_class"]["retain_accuracy"]) == {
        "airplane", "automobile", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    }  # fmt: skip
    assert models["unlearned"]["noise_correlation"] < models["original"]["noise_correlation"]
    again = json.loads((evaluate(str(folder), [f"data.cache_dir={tmp_path}/cache"]) / "metrics.json").read_text())
    assert again["scores"] == metrics["scores"]
