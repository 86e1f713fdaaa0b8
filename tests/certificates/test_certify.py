"""Certify and verify tiny runs: what is written, what a change is answered with, and planted leaks and members."""

import json
import re
import shutil
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from helpers import cached, run_command, tiny
from torch import nn

from safemax_pl.certificates import certificate, membership, statement
from safemax_pl.certificates.certification import Certification, Classified
from safemax_pl.certificates.leakage import bound_leakage, grid_of, with_bounds
from safemax_pl.certificates.settings import Settings
from safemax_pl.certificates.similarity import conditions
from safemax_pl.certificates.utility import DRIFT
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.diffusion.saved_model import pretrained, save_model
from safemax_pl.evaluation.scoring import make_evaluator
from safemax_pl.reports.certified import TITLES, Certificates
from safemax_pl.reports.load import read
from safemax_pl.reports.report import report
from safemax_pl.training.fit import fit

SMALL = [
    "certificate.leak_images=12",
    "certificate.samplers=[{name: ddim, steps: 3}]",
    "certificate.images=20",
    "certificate.timesteps=[0.1,0.3]",
    "certificate.noise_draws=1",
    "certificate.members=20",
    "certificate.nonce=tests",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(tiny(tmp_path_factory.mktemp("runs"), "data.forget_classes=[3,8]"), "tiny")


@pytest.fixture(scope="module")
def retrains(tmp_path_factory, run):
    """Folders of three models in the place of Retrains: the base model with noise on its weights."""
    data = build(tiny(run.parent, "data.forget_classes=[3,8]").data)
    folders = []
    for seed in range(3):
        model = pretrained(data, str(PROJECT / "weights/digits"))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.01 * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
        folders.append(tmp_path_factory.mktemp("retrain"))
        save_model(model, data, folders[-1])
    return f"retrains=[{','.join(map(str, folders))}]"


@pytest.fixture(scope="module")
def certified(run, retrains):
    certificate.certify(str(run), [retrains, *SMALL, cached()])
    return run / "certificate.json"


def changed(path, tmp_path, edit):
    """Return the path of a changed copy."""
    content = json.loads(path.read_text())
    edit(content)
    (tmp_path / "changed.json").write_text(json.dumps(content))
    return tmp_path / "changed.json"


def test_a_certificate_states_what_was_measured(certified, run):
    found = json.loads(certified.read_text())
    assert list(found["weights"]) == ["unlearned", "original", "retrain 1", "retrain 2", "retrain 3"]
    assert found["weights"]["unlearned"] == json.loads((run / "metrics.json").read_text())["weights"]["unlearned"]
    assert found["nonce"] == "tests" and found["data"] and found["classifier"] and found["code"]
    cells = found["leakage"]["cells"]
    assert [(cell["class"], cell["w"], cell["n"]) for cell in cells] == [
        (name, w, 24 if w == -1 else 12) for w in (0, 2, -1) for name in ("3", "8")
    ]
    controls = found["leakage"]["controls"]
    assert {(row["model"], row["w"]) for row in controls} == set(product(list(found["weights"])[1:], (0, -1)))
    original = [row["hits"] / row["n"] for row in controls if row["model"] == "original" and row["w"] == 0]
    assert len(original) == 2 and max(original) > 0.3  # three steps draw poor digits
    conditions = found["similarity"]["conditions"]
    assert list(conditions) == ["retained classes", "forgotten classes", "unconditional"]
    assert all(
        0 <= one[test]["p"] <= one[test]["p_adjusted"] <= 1
        for one in conditions.values()
        for test in ("closer", "excess")
    )
    assert set(found["membership"]["attacks"]["null"]["auc"]) == set(found["weights"])
    assert found["membership"]["members"] == 20  # ten of each class
    assert found["utility"][DRIFT]["low"] <= found["utility"][DRIFT]["value"]
    for part in ("forget 3, 8.", "95 % confidence", "at most", "without a label", "AUC", "Δ FID", "3 Retrains"):
        assert part in found["statement"], part


def test_the_same_command_verifies_it(certified, run, retrains):
    done = run_command("--verify", str(certified), str(run), retrains, cached(), module="safemax_pl.certify")
    assert done.returncode == 0 and "verified: all numbers" in done.stdout, done.stderr


@pytest.fixture
def measured(certified, monkeypatch):
    """The examination gives the numbers of the certificate again, as the test above has shown."""
    monkeypatch.setattr(certificate, "measure", lambda *_: json.loads(certified.read_text()))


def test_a_number_that_was_changed_is_found(certified, run, retrains, tmp_path, measured):
    def better(content):
        content["leakage"]["cells"][0]["hits"] += 2 if content["leakage"]["cells"][0]["hits"] < 6 else -2
        content["leakage"] = with_bounds(content["leakage"], 0.05)
        content["statement"] = statement.paragraph(content)

    with pytest.raises(UserError, match=r"does not hold .* leakage\.cells\.0\.hits is \d+, the certificate says \d+"):
        certificate.verify(changed(certified, tmp_path, better), str(run), [retrains, cached()])


def test_a_test_whose_outcome_was_changed_is_found(certified, run, retrains, tmp_path, measured):
    """A difference of another sign is below every tolerance that an absolute one would have."""

    def reversed_outcome(content):
        closer = content["similarity"]["conditions"]["retained classes"]["closer"]
        closer["difference"] = -closer["difference"]
        content["statement"] = statement.paragraph(content)

    with pytest.raises(UserError, match=r"closer\.difference is .*tests of similarity have another outcome"):
        certificate.verify(changed(certified, tmp_path, reversed_outcome), str(run), [retrains, cached()])


def test_a_paragraph_that_says_more_than_the_numbers_is_found(certified, run, retrains, tmp_path, measured):
    def boast(content):
        content["statement"] = content["statement"].replace("at most", "certainly less than")

    with pytest.raises(UserError, match="its paragraph does not say what its numbers say"):
        certificate.verify(changed(certified, tmp_path, boast), str(run), [retrains, cached()])


def test_a_certificate_of_another_model_is_refused_before_any_compute(certified, run, retrains, tmp_path, monkeypatch):
    monkeypatch.setattr(certificate, "measure", lambda *_: pytest.fail("measured"))
    other = shutil.copytree(run, tmp_path / "other")
    data = build(tiny(tmp_path, "data.forget_classes=[3]").data)
    model = pretrained(data, str(other))
    with torch.no_grad():
        model.class_embeddings[3] += 1
    save_model(model, data, other)
    with pytest.raises(UserError, match=r"does not hold .* weights\.unlearned is"):
        certificate.verify(certified, str(other), [retrains, cached()])


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda one: one.pop("utility"), "is damaged .*has no utility"),
        (lambda one: one["settings"].update(alpha="0.05"), "is damaged"),
        (lambda one: one["settings"].update(alpha=0.9), "is damaged"),
        (lambda one: one["leakage"]["cells"][0].update(hits=1000), "is damaged .*1000 of 12 images"),
        (lambda one: one["leakage"]["cells"][0].update(bound=1e-6), "follows from its counts"),
        (lambda one: one["leakage"].update(cells=[]), "is damaged"),
        (
            lambda one: one["similarity"]["conditions"]["unconditional"]["closer"].update(p_adjusted=0),
            "follows from its",
        ),
        (lambda one: one["utility"][DRIFT].update(value=1e300), "is damaged"),
        (lambda one: one["settings"].update(samplers=[{"steps": "x"}]), "steps='x', expected int"),
        (lambda one: one["settings"].update(surprise=1), "is damaged"),
        (lambda one: one["settings"].update(samplers=[{"name": "${oc.env:HOME}"}]), "unknown sampler"),
        (lambda one: one.update(version=99), "has version 99"),
    ],
)
def test_a_damaged_certificate_is_refused(certified, run, tmp_path, edit, said):
    with pytest.raises(UserError, match=said):
        certificate.verify(changed(certified, tmp_path, edit), str(run), [cached()])


def test_verification_needs_the_same_retrains(certified, run):
    with pytest.raises(UserError, match=r"compares with retrain 1, retrain 2, retrain 3: give the same folders"):
        certificate.verify(certified, str(run), [cached()])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--verify", "nowhere.json"], "nowhere.json does not exist: give a certificate.json"),
        (["--verify", "weights"], "weights is a folder: give a certificate.json"),
        (["certificate.guidance=[0,x]"], r"certificate\.guidance=\[0, 'x'\]: give"),
        (["certificate.samplers=[{name: ddim, steps: 2}]"], "certificate.samplers: .*use spacing=trailing"),
        (["--verify"], "has no value"),
        (["--verify", "pyproject.toml", "certificate.alpha=0.1"], "takes the settings from the certificate"),
        (["certficate=quick"], "did you mean 'certificate'"),
        (["certificate=full"], "unknown certificate 'full'"),
        (["certificate.alpha=0.7"], r"certificate\.alpha=0\.7: give an error rate"),
        (["certificate.images=1"], r"certificate\.images=1"),
        (["certificate.images=15"], "for 8 classes: give at least 16"),
        (["certificate.guidance=[-1]"], r"certificate\.guidance=\[-1\]: give"),
        (["certificate.sampler=1"], r"certificate\.sampler"),
        (["retrains=nowhere"], "no model at retrains=nowhere"),
        (["retrains=[a,a]"], "has a folder twice"),
        (["data.forget_classes=[]"], "nothing was forgotten"),
    ],
)
def test_mistakes_are_answered_before_anything_is_computed(run, arguments, said, monkeypatch):
    monkeypatch.setattr(certificate, "measure", lambda *_: pytest.fail("measured"))
    monkeypatch.chdir(PROJECT)
    done = run_command(str(run), cached(), *arguments, module="safemax_pl.certify")
    assert done.returncode == 1
    assert re.search(said, done.stderr), done.stderr


def test_a_retrain_twice_under_two_names_is_refused(run, retrains, tmp_path):
    folder = retrains.removeprefix("retrains=[").partition(",")[0]
    shutil.copytree(folder, tmp_path / "copy")
    with pytest.raises(UserError, match="retrain 2 and retrain 1 have the same weights"):
        certificate.certify(str(run), [f"retrains=[{folder},{tmp_path / 'copy'}]", *SMALL, cached()])


# -- the statements, on models whose answer is known ------------------------------------------------------------------


@pytest.fixture(scope="module")
def certification():
    cfg = compose(
        "fit", ["experiment=digits_forget1", "trainer.enable_progress_bar=false", "data.forget_classes=[3]", cached()]
    )
    data = build(cfg.data)
    original = build(cfg.model, data=data)
    settings = Settings(
        0.05, "n", 40, [{"name": "dpm_solver", "steps": 8, "spacing": "trailing"}], [0.0], 20, [0.1], 2, 1000
    )
    return Certification(make_evaluator(cfg, data), settings, "n", {"unlearned": original, "original": original})


def test_seeds_follow_from_weights_nonce_and_purpose(certification):
    other = Certification(certification.evaluator, certification.settings, "m", certification.models)
    renamed = SimpleNamespace(weights_digest="0")
    third = Certification(certification.evaluator, certification.settings, "n", {"unlearned": renamed})
    seeds = [certification.first_seed("a"), certification.first_seed("b"), other.first_seed("a"), third.first_seed("a")]
    assert (
        len(set(seeds)) == 4 and all(0 <= seed < 2**48 for seed in seeds) and certification.first_seed("a") == seeds[0]
    )
    plan = certification.plan([3, 5], 5, "a")
    assert plan.seeds.tolist() == [seeds[0] + i for i in range(5)] * 2 and plan.labels.tolist() == [3] * 5 + [5] * 5


def test_without_a_null_label_nothing_is_unconditional(certification):
    blind = Certification(
        certification.evaluator,
        Settings(0.05, "n", 40, [{"steps": 8}], [0.0, 2.0], 20, [0.1], 2, 1000),
        "n",
        {"unlearned": SimpleNamespace(null_label=None), "original": certification.models["original"]},
    )
    assert [w for _, w in grid_of(blind)] == [0] and list(conditions(blind)) == [
        "retained classes",
        "forgotten classes",
    ]
    assert [w for _, w in grid_of(certification)] == [0, -1]


def test_the_original_leaks_all_of_it(certification):
    found = bound_leakage(certification)
    assert found["bound"] == 1 and found["cells"][0]["hits"] >= 38
    assert 0.02 <= found["cells"][-1]["bound"] <= 0.6 and found["cells"][-1]["w"] == -1


def test_a_planted_leak_is_below_its_bound(certification, monkeypatch):
    """One image in ten shows the class; the classifier is asked about images that were made elsewhere."""

    def planted(self, model, plan, guidance, sampler=None):
        shown = torch.where(torch.arange(len(plan)) % 10 == 0, 3, 10)
        return Classified(torch.zeros(len(plan), 1, 8, 8), plan.labels, shown, shown, torch.zeros(len(plan), 2))

    monkeypatch.setattr(Certification, "generate", planted)
    found = bound_leakage(certification)
    assert found["cells"][0]["hits"] == 4 and 0.1 < found["bound"] < 0.5
    assert found["classes"]["3"]["n"] > 30 and found["classes"]["3"]["missed"] > 0


class Memory(nn.Module):
    """Predicts no noise for images that it has seen, and much for others."""

    def __init__(self, images, scale):
        super().__init__()
        self.register_buffer("seen", images)
        self.scale, self.null_label, self.diffusion, self.weights_digest = scale, 10, Diffusion(), ""

    def forward(self, x_t, t, labels):
        known = (torch.cdist(x_t.flatten(1), self.seen.flatten(1)).amin(dim=1) < 1e-3).view(-1, 1, 1, 1)
        return torch.where(known & (labels == 10).view(-1, 1, 1, 1), x_t * 0, x_t * self.scale + 1)


def test_members_that_the_null_label_remembers_are_told_from_others(certification):
    data = certification.evaluator.data
    images = data.source.train.images[data.rows("train", "forget")].float() / 127.5 - 1
    knows, not_these = Memory(images, 1.0), Memory(images[:0].new_zeros(1, 1, 8, 8), 1.0)
    found = membership.attack_membership(
        Certification(certification.evaluator, certification.settings, "n", {"unlearned": not_these, "original": knows})
    )
    null = found["attacks"]["null"]
    assert null["score"] == "SimA" and null["auc"]["original"]["low"] > 0.85
    assert null["auc"]["unlearned"]["low"] < 0.5 < null["auc"]["unlearned"]["high"]
    assert found["members"] == len(images) and found["others"] == len(data.rows("test", "forget"))


def test_bounds_are_rounded_up():
    assert [statement.percent(share) for share in (0.00371, 0.004, 0.1236, 1.0)] == [
        "0.38 %",
        "0.4 %",
        "12.4 %",
        "100 %",
    ]


# -- the report -------------------------------------------------------------------------------------------------------


def test_a_table_names_the_images_that_moved_towards_retrain_or_away(certified, run):
    (finished,), _ = read([run])
    content = json.loads((run / "certificate.json").read_text())
    conditions = content["similarity"]["conditions"]
    moved = {"retained classes": (-0.1, 0.5), "forgotten classes": (-0.1, 0.01), "unconditional": (0.1, 0.01)}
    for name, (difference, p) in moved.items():
        conditions[name]["closer"] |= {"difference": difference, "p_adjusted": p}

    def cell(certificate):
        (row,) = Certificates([("a", finished, certificate)]).table
        return row[TITLES.index("images closer to Retrain or farther, than the original's")]

    assert cell(content) == "closer: forgotten classes; farther: unconditional"
    for one in conditions.values():
        one["closer"]["p_adjusted"] = 0.5
    assert cell(content) == "not detected"
    assert cell(content | {"similarity": None}) == "–"


def test_a_report_shows_the_certificates_of_its_runs_in_its_own_words(certified, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "runs" / "tiny")
    content = json.loads((copy / "certificate.json").read_text()) | {
        "statement": "<b>trust me</b>",
        "subject": "<i>x</i>",
    }
    (copy / "certificate.json").write_text(json.dumps(content))
    out = report([tmp_path / "runs"])
    for name in ("report.html", "report.md"):
        text = (out / name).read_text()
        assert "Certificates" in text and "tiny was made to forget 3, 8." in text and "at most" in text
        assert "trust me" not in text and "<i>" not in text
    (copy / "certificate.json").write_text(json.dumps(content | {"nonce": "<i>|\x1b[1m"}))
    text = (report([tmp_path / "runs"]) / "report.html").read_text()
    assert "&lt;i&gt;|" in text and "<i>" not in text and "\x1b" not in text
    content["weights"]["unlearned"] = "0"
    (copy / "certificate.json").write_text(json.dumps(content))
    text = (report([tmp_path / "runs"]) / "report.md").read_text()
    assert "is of other weights" in text and "## Certificates" not in text
    (copy / "certificate.json").write_text("{}")
    assert "damaged" in (report([tmp_path / "runs"]) / "report.md").read_text()
