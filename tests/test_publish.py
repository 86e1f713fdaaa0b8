"""What is published is small, loads as float32 with our own loaders, and says where it comes from."""

import json
import shutil
import sys
from pathlib import Path

import helpers
import pytest
import torch
from helpers import TINY as TINY_FIT
from helpers import TINY_CLASSIFIER, cached
from huggingface_hub import ModelCard
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file

from safemax_pl.classifier.model import Classifier
from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT, file_digest
from safemax_pl.config.compose import compose
from safemax_pl.config.locations import without_locations
from safemax_pl.config.saved import read_config
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion.saved_model import pretrained
from safemax_pl.publish import main
from safemax_pl.runs import publication, publication_checks
from safemax_pl.runs.evaluate import evaluate
from safemax_pl.runs.model_card import model_card
from safemax_pl.runs.publication import publish
from safemax_pl.runs.publication_checks import FILES, WRITTEN, check_folder
from safemax_pl.training.fit import fit
from safemax_pl.training.fit_classifier import fit_classifier

TEXTS = (".json", ".yaml", ".md")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
BASE = [
    "unlearner=retain_only",
    "model=unet_digits",
    "model.channels=[16,16]",
    "model.head_dim=16",
    "data.forget_classes=[]",
]
BASE += ["data.forget_batch_size=0", "evaluation.plans.quick.retain_total=10", "ema_decay=0.5"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with the finished runs `model` and `classifier`; read only."""
    folder = tmp_path_factory.mktemp("runs")
    place = ["logger=csv", f"runs_dir={folder}", cached()]
    fit(compose("fit", [*TINY_FIT, *BASE, *place]), "model", command_line=command(folder))
    fit_classifier(compose("fit_classifier", [*TINY_CLASSIFIER, *place, "trainer.max_steps=40"]), "classifier")
    return folder


def command(folder: Path) -> str:
    places = f"runs_dir={folder} data.path={folder} evaluation.inception={folder}/i.pth classifier={folder}/classifier"
    return f"python -m safemax_pl.fit experiment=digits_pretrain {places} seed=0 name=model"


@pytest.fixture(scope="module")
def data(runs) -> ForgetRetainDataModule:
    return instantiate(compose("fit", ["data=digits"]).data, cache_dir=str(helpers.CACHE))


@pytest.fixture
def model(runs, tmp_path) -> Path:
    return publish(runs / "model", tmp_path / "digits")


@pytest.fixture
def classifier(runs, tmp_path) -> Path:
    return publish(runs / "classifier", tmp_path / "digits/classifier")


def predictions(folder: Path, data: ForgetRetainDataModule) -> torch.Tensor:
    loaded = pretrained(data, str(folder)).eval()
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.float32}
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return loaded(x, torch.arange(8) * 100, torch.arange(8))


def logits(folder: Path, data: ForgetRetainDataModule) -> torch.Tensor:
    loaded = Classifier.load(folder, data)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32, torch.int64}
    return loaded(data.source.test.images[:50]).noise_aware


# -- weights ---------------------------------------------------------------------------------------------------------


def test_a_published_model_computes_the_same_up_to_rounding(runs, model, data):
    before, after = predictions(runs / "model", data), predictions(model, data)
    deviation = ((before - after).square().mean() / before.square().mean()).sqrt().item()
    assert 0 < deviation < 1e-2


def test_a_published_classifier_computes_the_same_up_to_rounding(runs, classifier, data):
    before, after = logits(runs / "classifier/classifier", data), logits(classifier, data)
    assert 0 < (before - after).abs().max() < 0.02 * before.abs().max()


def test_matrices_are_rounded_and_vectors_are_not(runs, classifier):
    before = load_file(runs / "classifier/classifier/model.safetensors")
    for name, tensor in load_file(classifier / "model.safetensors").items():
        if before[name].ndim > 1:
            assert tensor.dtype == torch.float16
            torch.testing.assert_close(tensor.float(), before[name], rtol=2**-11, atol=2**-24)
        else:
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_half_precision_is_half_as_large(runs, model):
    before, after = ((folder / WEIGHTS).stat().st_size for folder in (runs / "model", model))
    assert 0.5 < after / before < 0.6


def test_in_full_precision_nothing_is_rounded(runs, tmp_path, data):
    folder = publish(runs / "model", tmp_path / "full", "float32")
    torch.testing.assert_close(predictions(folder, data), predictions(runs / "model", data), rtol=0, atol=0)


def test_a_fit_starts_from_what_was_published_and_names_its_hashes(runs, model, classifier, tmp_path):
    place = ["logger=csv", f"runs_dir={tmp_path}", cached()]
    chosen = ["model=pretrained", f"model.path={model}", f"classifier={classifier}", "second_classifier=null"]
    metrics = json.loads((fit(compose("fit", [*TINY_FIT, *place, *chosen]), "run") / "metrics.json").read_text())
    said = json.loads((model / "metrics.json").read_text())["published"]
    assert metrics["weights"]["original"] == said["weights"] in (model / "README.md").read_text()
    digest = file_digest(classifier / "model.safetensors")
    assert metrics["protocol"]["classifier"]["hash"] == digest
    assert digest in (classifier / "README.md").read_text()
    accuracy = json.loads((runs / "classifier/metrics.json").read_text())["scores"]["accuracy"]
    assert metrics["classifiers"]["classifier"]["accuracy"] == pytest.approx(accuracy, abs=0.01)  # rounded to float16


# -- the card --------------------------------------------------------------------------------------------------------


def test_nothing_published_names_a_folder_of_the_machine(runs, model, classifier):
    texts = [path for folder in (model, classifier) for path in folder.rglob("*") if path.suffix in TEXTS]
    assert {path.name for path in texts} >= {"README.md", "metrics.json", "config.json", "config.yaml", "data.json"}
    assert not [path for path in texts if str(runs) in path.read_text()]
    assert str(runs) in (runs / "model/config.yaml").read_text()
    assert read_config(model / "config.yaml").data.cache_dir == "~/.cache/safemax_pl"


def test_the_commands_of_attacks_name_no_folder_either():
    said = {"command": "python -m safemax_pl.attack /home/me/run attack=null_leak", "hardware": "CPU"}
    found = publication._on_any_machine(
        {"provenance": said, "attacks": {"null_leak": {"provenance": said}}, "ranks": []}
    )
    assert "/home/me" not in json.dumps(found) and "ranks" not in found
    assert found["attacks"]["null_leak"]["provenance"]["command"].endswith("attack=null_leak")


def test_a_card_gets_the_scores_of_the_weights_that_are_shipped(runs, model):
    before = json.loads((model / "metrics.json").read_text())
    assert "Scores of the weights before rounding" in (model / "README.md").read_text()
    changes = ["evaluation.plans.standard.retain_total=20", cached()]
    found = evaluate(str(model), changes)
    publish(found, model)
    after = json.loads((model / "metrics.json").read_text())
    scores = json.loads((found / "metrics.json").read_text())["scores"]
    assert after["scores"] == scores != before["scores"] and after["protocol"]["plan"]["retain_total"] == 20
    card = (model / "README.md").read_text()
    assert f"| fid_retain/classifier | {scores['w=0']['model']['fid_retain/classifier']:.4g} |" in card
    assert "Scores of these very weights" in card and after["cost"] == before["cost"]
    assert (model / "samples.png").read_bytes() == (found / "samples.png").read_bytes()


def test_the_scores_of_other_weights_are_refused(runs, model, tmp_path):
    found = evaluate(str(model), ["evaluation.plans.standard.retain_total=20", cached()])
    other = publish(runs / "model", tmp_path / "other", "bfloat16")
    with pytest.raises(UserError, match=r"has scored other weights .*evaluate"):
        publish(found, other)
    assert "Scores of the weights before rounding" in (other / "README.md").read_text()


def test_a_model_card_has_data_recipe_seed_scores_licence_and_command(runs, model):
    card = (model / "README.md").read_text()
    scores = json.loads((runs / "model/metrics.json").read_text())["scores"]["w=0"]["model"]
    assert f"| fid_retain/classifier | {scores['fid_retain/classifier']:.4g} |" in card
    for name, accuracy in scores["per_class"]["retain_accuracy"].items():
        assert f"| {name} | {accuracy:.4g} |" in card
    assert "digits, training split, 10 classes; fingerprint 633470c0fd21" in card
    assert "4 steps of 4 images, Adam 0.0002, weights averaged with decay 0.5" in card
    assert "| seed | 0 |" in card and "CC BY 4.0" in card and "Apache-2.0" in card
    assert "\npython -m safemax_pl.fit experiment=digits_pretrain seed=0\n" in card
    assert "![samples](samples.png)" in card and (model / "samples.png").exists()


def test_the_hub_can_read_the_front_matter_of_both_cards(model, classifier):
    card, other = (ModelCard((folder / "README.md").read_text()) for folder in (model, classifier))
    assert (card.data.license, card.data.library_name, card.data.datasets) == ("apache-2.0", "diffusers", ["digits"])
    assert card.data.tags == ["diffusion"] and "fid_retain/classifier" in card.data.metrics
    assert (other.data.library_name, other.data.metrics) == ("safemax_pl", ["accuracy"])
    assert card.text.startswith("<!-- written by safemax_pl.publish") and "# digits: diffusion model\n" in card.text


@pytest.mark.parametrize("name", ["a\n---\n# mine", "[x](javascript:y) <b>", "'", "x: y", "# z"])
def test_no_name_leaves_the_front_matter_or_becomes_markup(model, name):
    data = json.loads((model / "data.json").read_text())
    (model / "data.json").write_text(json.dumps(data | {"name": name}))
    text = model_card(model)
    card = ModelCard(text)
    assert card.data.datasets == [" ".join(name.split())] and card.data.license == "apache-2.0"
    assert card.text.startswith("<!-- written by") and text.count("\n---\n") == 1
    assert "[x](" not in card.text and "<b>" not in card.text and "\n# mine" not in card.text


def test_the_card_of_an_unlearned_model_says_what_was_forgotten_and_what_was_before(runs, model, tmp_path):
    place = ["logger=csv", f"runs_dir={tmp_path}", cached()]
    batches = ["data.forget_batch_size=2", "data.retain_batch_size=4"]
    original = ["model=pretrained", f"model.path={model}", "data.forget_classes=[3]", *batches]
    cards = []
    for name, chosen in {"safemax": original, "fine": [*original, "unlearner=finetune"]}.items():
        run = fit(compose("fit", [*TINY_FIT, *place, *chosen]), name)
        cards.append((publish(run, tmp_path / "published" / name) / "README.md").read_text())
    before = json.loads((model / "metrics.json").read_text())["published"]["weights"]
    scores = json.loads((run / "metrics.json").read_text())["scores"]["w=0"]
    assert all(f"| unlearned | 3, from the weights {before}, by " in card and ", but 3" not in card for card in cards)
    assert "of 2 forget and 4 retain images" in cards[0] and "steps of 4 images" in cards[1]
    both = [f"{scores[which]['fid_retain/classifier']:.4g}" for which in ("unlearned", "original")]
    assert "|  | w=0 | w=0, original |" in cards[1] and f"| fid_retain/classifier | {' | '.join(both)} |" in cards[1]


def test_a_classifier_card_has_its_scores_and_what_it_says_of_noise(runs, classifier):
    card = (classifier / "README.md").read_text()
    scores = json.loads((runs / "classifier/metrics.json").read_text())["scores"]
    assert f"{scores['accuracy']:.4g}; {scores['accuracy_noise_aware']:.4g} with the class for noise (n = 359" in card
    assert len(scores["noise"]) > 10
    assert all(
        f"| {kind} ({said['group']}) | {said['noise_rate']:.4g} |" in card for kind, said in scores["noise"].items()
    )
    assert "40 steps of 32 images, AdamW 0.03, shifts of 1 pixels" in card


@pytest.mark.parametrize("run", ["model", "classifier"])
def test_a_card_is_replaced_unless_it_was_written_by_hand(runs, tmp_path, capsys, run):
    folder = tmp_path / "there"
    publish(runs / run, folder)
    written = (folder / "README.md").read_text()
    (folder / "README.md").write_text(written + "old")
    publish(runs / run, folder)
    assert (folder / "README.md").read_text() == written
    assert "by hand" not in capsys.readouterr().out
    (folder / "README.md").write_text("# Mine\n")
    publish(runs / run, folder)
    assert (folder / "README.md").read_text() == "# Mine\n"
    assert "by hand" in capsys.readouterr().out


def test_the_card_comes_last(runs, model, monkeypatch):
    """Where something goes wrong, no card tells of weights that are others or not there."""

    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr(publication, "write_json", fails)
    with pytest.raises(OSError, match="no space"):
        publish(runs / "model", model)
    assert not (model / "README.md").exists()


def test_a_command_loses_where_it_ran():
    line = (
        "python -m safemax_pl.fit experiment=x data.path='/a b' runs_dir=/r 'model.channels=[1, 2]' +trainer.devices=2 "
        "evaluation.inception=/w/i.pth classifier=/w 'model.path=\"/w w\"'"
    )
    assert without_locations(line) == "python -m safemax_pl.fit experiment=x 'model.channels=[1, 2]'"


# -- what is refused -------------------------------------------------------------------------------------------------


def test_weights_above_the_limit_are_refused_before_anything_is_written(runs, tmp_path):
    with pytest.raises(UserError, match=r"have 0\.\d MB in float16, and 0\.01 MB are legal.*smaller network.*max_mb="):
        publish(runs / "model", tmp_path / "new", max_mb=0.01)
    assert not (tmp_path / "new").exists()


def test_weights_that_a_precision_cannot_hold_are_refused(runs, tmp_path):
    shutil.copytree(runs / "model", tmp_path / "model")
    tensors = load_file(tmp_path / "model" / WEIGHTS)
    tensors["conv_in.weight"][0] = 1e5
    save_file(tensors, tmp_path / "model" / WEIGHTS)
    with pytest.raises(UserError, match=r"conv_in\.weight is not finite in float16.*bfloat16"):
        publish(tmp_path / "model", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    publish(tmp_path / "model", tmp_path / "new", "bfloat16")


@pytest.mark.parametrize("missing", ["metrics.json", "config.yaml", "unet"])
def test_an_unfinished_run_is_refused(runs, tmp_path, missing):
    shutil.copytree(runs / "model", tmp_path / "model")
    (tmp_path / "model" / missing).rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"not a finished run .*run its command again"):
        publish(tmp_path / "model", tmp_path / "new")


def test_the_command(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["publish", str(runs / "model"), str(tmp_path / "new"), "precision=bfloat16"])
    main()
    assert "MB of weights in bfloat16" in capsys.readouterr().out
    assert load_file(tmp_path / "new" / WEIGHTS)["conv_in.weight"].dtype == torch.bfloat16
    monkeypatch.setattr(sys, "argv", ["publish", str(tmp_path), str(tmp_path / "new")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1 and "not a finished run" in capsys.readouterr().err


# -- nothing else is touched -----------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("run", ["model", "classifier"])
def test_other_files_in_the_folder_stay(runs, tmp_path, run):
    there = tmp_path / "there"
    (there / "deep").mkdir(parents=True)
    for name in ("mine.txt", "deep/mine.txt", ".hidden"):
        (there / name).write_text(name)
    for _ in range(2):
        publish(runs / run, there)
        assert {name: (there / name).read_text() for name in ("mine.txt", "deep/mine.txt", ".hidden")} == {
            name: name for name in ("mine.txt", "deep/mine.txt", ".hidden")
        }


@pytest.mark.parametrize("part", ["unet", "classifier"])
@pytest.mark.parametrize(
    "there", ["README.md", "config.yaml", "config.json", "metrics.json", "unet/mine", "samples.png"]
)
def test_a_folder_with_files_of_another_origin_in_the_way_is_refused_and_left(tmp_path, part, there):
    folder = tmp_path / "there"
    (folder / there).parent.mkdir(parents=True)
    (folder / there).write_text("{}")
    before = tree(folder)
    if there.partition("/")[0] in WRITTEN[part]:
        with pytest.raises(UserError, match=f"holds {there.partition('/')[0]}, which publish has not written"):
            check_folder(folder, tmp_path / "run", part)
    else:
        check_folder(folder, tmp_path / "run", part)
    assert tree(folder) == before


@pytest.mark.parametrize("part", ["unet", "classifier"])
def test_runs_and_the_repository_are_no_place_for_publications(tmp_path, write_run, part):
    run, other = write_run("a"), write_run("b")
    (run / "classifier").mkdir()
    for folder in (run, run / "classifier", run / "new", run.parent, tmp_path, other, PROJECT):
        with pytest.raises(UserError, match=r"is the run|has not written"):
            check_folder(folder, run, part)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        check_folder(tmp_path / "file", run, part)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / WRITTEN[part][0]).symlink_to(other)
    with pytest.raises(UserError, match="is a link"):
        check_folder(tmp_path / "links", run, part)


def test_a_file_beside_the_published_network_would_be_lost_and_is_named(model, runs):
    (model / "unet/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"unet/notes\.txt was not written by publish"):
        publish(runs / "model", model)
    assert (model / "unet/notes.txt").read_text() == "mine"


def test_only_what_the_project_ships_is_replaced_below_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(publication_checks, "PROJECT", tmp_path)
    for name in ("mine", "digits"):
        (tmp_path / "weights" / name / "unet").mkdir(parents=True)
    check_folder(tmp_path / "weights/digits", tmp_path / "run", "unet")
    with pytest.raises(UserError, match="holds unet, which publish has not written"):
        check_folder(tmp_path / "weights/mine", tmp_path / "run", "unet")


@pytest.mark.parametrize(
    ("run", "change", "message"),
    [
        ("model", {"conv_in.bias": None}, "conv_in.bias has shape None, expected"),
        ("model", {"x": torch.zeros(1)}, "x has shape .*expected None"),
        ("model", {"conv_in.bias": torch.zeros(3)}, r"conv_in.bias has shape \(3,\)"),
        ("model", {"conv_in.bias": torch.full((16,), torch.nan)}, "conv_in.bias holds NaN"),
        ("classifier", {"plain.head.bias": torch.zeros(3)}, "plain.head.bias has shape"),
        ("classifier", {"plain.head.bias": torch.full((10,), torch.inf)}, "plain.head.bias holds NaN or infinite"),
    ],
)
def test_weights_that_do_not_fit_are_not_published(runs, tmp_path, run, change, message):
    folder = shutil.copytree(runs / run, tmp_path / "run")
    part = "unet" if run == "model" else "classifier"
    path = folder / part / FILES[part]
    tensors = load_file(path) | change
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    with pytest.raises(UserError, match=message):
        publish(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


DAMAGE = {
    "unet/diffusion_pytorch_model.safetensors": b"theirs",
    "unet/config.json": b'{"layers_per_block": 10000000}',
    "metrics.json": b'{"scores": {}, "provenance": {"command": "x"}}',
    "config.yaml": b"a: 1",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_is_one_line(runs, tmp_path, name):
    folder = shutil.copytree(runs / "model", tmp_path / "run")
    (folder / name).write_bytes(DAMAGE[name])
    with pytest.raises(UserError) as caught:
        publish(folder, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_damaged_files_in_the_folder_are_one_line(runs, model, tmp_path):
    evaluation = tmp_path / "evaluations/same"
    evaluation.mkdir(parents=True)
    for content in ({"weights": {"model": None}}, {"weights": []}, {"weights": {"model": "x"}}):
        (evaluation / "metrics.json").write_text(json.dumps(content))
        with pytest.raises(UserError):
            publish(evaluation, model)
    (model / "metrics.json").write_text('{"published": []}')
    with pytest.raises(UserError, match=r"metrics\.json is damaged"):
        publish(evaluation, model)
    (tmp_path / "new").mkdir()
    (tmp_path / "new/README.md").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"README\.md"):
        publish(runs / "model", tmp_path / "new")


@pytest.mark.parametrize("run", ["model", "classifier"])
def test_an_interrupted_publication_goes_on_by_the_same_command(runs, tmp_path, monkeypatch, run):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(publication, "save_file", killed)
        publish(runs / run, tmp_path / "new")
    assert (publish(runs / run, tmp_path / "new") / "README.md").exists()
