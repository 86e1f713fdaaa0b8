"""The second classifier in the scores: what it adds, and that it can't be the first again."""

import copy
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from safemax_pl.classifier.model import Classifier
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT
from safemax_pl.config.compose import compose
from safemax_pl.data.batch import from_uint8
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.data.sampling_plan import Rows, SamplingPlan
from safemax_pl.evaluation.evaluator import Evaluator
from safemax_pl.evaluation.generation import NoiseImages
from safemax_pl.evaluation.metric_suite import MetricSuite
from safemax_pl.evaluation.scoring import make_evaluator

SHIPPED = PROJECT / "weights" / "digits" / "classifier"
SECOND = PROJECT / "weights" / "digits" / "second_classifier"
ADDED = {"ua_noise_aware/second", "retain_accuracy/second", "classifier_disagreement"}
PLAN = SamplingPlan([3], [0, 1, 2, 4, 5, 6, 7, 8, 9], 50, 90)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "cache"


@pytest.fixture(scope="module")
def digits(cache: Path) -> ForgetRetainDataModule:
    """The digits, 3 forgotten."""
    data = instantiate(compose("fit", ["experiment=digits_forget1"]).data, cache_dir=str(cache))
    data.setup("fit")
    return data


def evaluator_of(digits: ForgetRetainDataModule, cache: Path, *overrides: str) -> Evaluator:
    given = ["experiment=digits_forget1", "trainer.enable_progress_bar=false", f"data.cache_dir={cache}", *overrides]
    return make_evaluator(compose("fit", given), digits)


@pytest.fixture(scope="module")
def evaluator(digits: ForgetRetainDataModule, cache: Path) -> Evaluator:
    return evaluator_of(digits, cache)


def always(data: ForgetRetainDataModule, label: int) -> Classifier:
    """The shipped classifier, both of whose networks say `label` of everything; 10 is noise."""
    classifier = Classifier.load(SHIPPED, data)
    classifier.digest = f"always {label}"
    for network in (classifier.plain, classifier.noise_aware):
        network.head.weight.zero_()
        network.head.bias.zero_()
        network.head.bias[min(label, len(network.head.bias) - 1)] = 9
    return classifier


def real_test_images(data: ForgetRetainDataModule) -> tuple[Tensor, Rows]:
    test = data.source.test
    return from_uint8(test.images), Rows(test.labels, torch.arange(359), torch.arange(359))


def plan_of_test_images(data: ForgetRetainDataModule) -> SamplingPlan:
    """A plan whose rows are the real test images."""
    plan = copy.copy(PLAN)
    plan.labels, plan.seeds = data.source.test.labels, torch.arange(359)
    plan.is_forget = plan.labels == 3
    return plan


def pure_noise() -> tuple[Tensor, Rows]:
    rows = Rows(PLAN.labels, PLAN.seeds, torch.arange(len(PLAN)))
    return NoiseImages("normal_noise", (1, 8, 8))(rows), rows


def scored_by(evaluator: Evaluator, second: Classifier, plan: SamplingPlan = PLAN) -> MetricSuite:
    references = {"classifier": evaluator.real_features.reference()}
    return MetricSuite(evaluator.classifier, evaluator.data, plan, references, second_classifier=second)


def scored(scores: MetricSuite, images: Tensor, rows: Rows) -> dict:
    for part in torch.arange(len(images)).split(100):
        scores.update(images[part], Rows(*(field[part] for field in rows)))
    return scores.compute().to_json()


def test_without_a_second_classifier_nothing_is_added_and_nothing_else_changes(digits, cache, evaluator):
    alone = scored(evaluator_of(digits, cache, "second_classifier=null").metric_suite(PLAN), *pure_noise())
    both = scored(evaluator.metric_suite(PLAN), *pure_noise())
    assert not ADDED & (alone.keys() | alone["per_class"].keys())
    assert both.keys() - alone.keys() == both["per_class"].keys() - alone["per_class"].keys() == ADDED
    assert {name: both[name] for name in alone if name != "per_class"} == {
        k: alone[k] for k in alone.keys() - {"per_class"}
    }


def test_the_shipped_classifiers_agree_on_pure_noise_and_on_real_images(digits, evaluator):
    noise = scored(evaluator.metric_suite(PLAN), *pure_noise())
    assert (noise["ua_noise_aware"], noise["ua_noise_aware/second"]) == (1, 1)
    assert noise["classifier_disagreement"] < 0.02
    real = scored(evaluator.metric_suite(plan_of_test_images(digits)), *real_test_images(digits))
    assert real["ua_noise_aware/second"] < 0.12  # 37 images of a 3
    assert real["retain_accuracy/second"] > 0.97
    assert real["classifier_disagreement"] < 0.05


def test_a_second_classifier_that_calls_everything_noise_is_seen(digits, evaluator):
    fooled = scored_by(evaluator, always(digits, 10), plan_of_test_images(digits))
    found = scored(fooled, *real_test_images(digits))
    assert found["ua_noise_aware"] < 0.12 and found["ua_noise_aware/second"] == 1
    assert found["classifier_disagreement"] == 1


def test_a_second_classifier_that_sees_the_forgotten_class_in_noise_is_seen(digits, evaluator):
    fooled = scored_by(evaluator, always(digits, 3))
    found = scored(fooled, *pure_noise())
    assert found["ua_noise_aware"] == 1 and found["ua_noise_aware/second"] == 0
    assert found["classifier_disagreement"] == 1
    assert found["retain_accuracy/second"] == 0


def test_disagreement_and_retain_accuracy_are_given_for_every_class(digits, evaluator):
    first_says_2 = scored_by(evaluator, always(digits, 2), plan_of_test_images(digits))
    per_class = scored(first_says_2, *real_test_images(digits))["per_class"]
    assert list(per_class["classifier_disagreement"]) == list("0123456789")
    assert per_class["classifier_disagreement"]["2"] < 0.1 < 0.9 < per_class["classifier_disagreement"]["5"]
    assert per_class["retain_accuracy/second"] == {name: float(name == "2") for name in "012456789"}
    assert list(per_class["ua_noise_aware/second"]) == ["3"]


def test_resetting_forgets_what_the_second_classifier_said(digits, evaluator):
    images, rows = pure_noise()
    scores = evaluator.metric_suite(PLAN)
    scored(scores, images.roll(1, dims=-1), rows)
    scores.update(torch.ones_like(images), rows)
    scores.reset()
    assert scored(scores, images, rows) == scored(evaluator.metric_suite(PLAN), images, rows)


def test_the_protocol_names_the_second_classifier_and_its_accuracy(digits, cache, evaluator):
    second = Classifier.load(SECOND, digits)
    stated = evaluator.protocol("standard")["second_classifier"]
    assert stated["hash"] == second.digest != evaluator.protocol("standard")["classifier"]["hash"]
    assert stated["accuracy_noise_aware"] == evaluator.accuracies["second_classifier"]["accuracy_noise_aware"] > 0.97
    assert evaluator_of(digits, cache, "second_classifier=null").protocol("standard")["second_classifier"] is None


def test_the_same_classifier_twice_is_refused(digits, cache):
    with pytest.raises(UserError, match=r"second_classifier has the weights of classifier.*digits_second_classifier"):
        evaluator_of(digits, cache, f"second_classifier={SHIPPED}")


def test_a_second_classifier_that_is_not_where_it_was_said_to_be_is_refused(digits, cache, tmp_path):
    with pytest.raises(UserError, match=r"no classifier at .*nowhere.*experiment=digits_second_classifier"):
        evaluator_of(digits, cache, f"second_classifier={tmp_path}/nowhere")


def test_a_second_classifier_of_another_data_set_is_refused(digits, cache, tmp_path):
    other = Classifier.load(SECOND, digits)
    other.class_names = other.class_names[::-1]
    other.save(tmp_path / "other", {})
    with pytest.raises(UserError, match=r"is for 10 classes \(9, 8, 7, 6"):
        evaluator_of(digits, cache, f"second_classifier={tmp_path}/other")


def test_the_shipped_second_classifier_is_the_default_and_data_without_one_have_none():
    assert compose("fit", ["data=digits"]).second_classifier == str(SECOND)
    assert compose("fit", ["data=digits", "data.name=mine"]).second_classifier is None


def test_a_run_from_before_there_was_a_second_classifier_is_scored_without(digits, cache):
    cfg = compose("fit", ["experiment=digits_forget1", f"data.cache_dir={cache}"])
    old = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "second_classifier"])
    assert make_evaluator(old, digits).second_classifier is None
