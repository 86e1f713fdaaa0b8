"""A report of a stranger's runs: their texts are shown as texts, and damaged files are one line."""

import base64
import csv
import hashlib
import json
import os
import re
import shutil
from html.parser import HTMLParser

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from safemax_pl.common.errors import UserError
from safemax_pl.reports.load import read
from safemax_pl.reports.outcomes import outcomes
from safemax_pl.reports.report import report

SCRIPT = "<script>alert(1)</script>"
TEXT = f"=1+1 {SCRIPT} [a](javascript:b) | $_$ [/] `x`"


class Tags(HTMLParser):
    """The tags of a page with their attributes, and what its scripts and styles are."""

    def __init__(self, text):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.content: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] in ("script", "style") and data.strip():
            self.content.setdefault(self.tags[-1][0], data)


def rewrite(run, edit):
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(edit(metrics) or metrics))


@pytest.fixture
def theirs(write_run, write_attack, tmp_path):
    """Two runs whose every text is hostile."""
    for seed in (0, 1):
        run = write_run("a", seed)
        write_attack(run)

        def edit(metrics):
            metrics["training"] |= {"method": TEXT, "weights": TEXT}
            metrics["provenance"] |= {"commit": TEXT, "hardware": TEXT, "command": f"python -m x; rm -rf / {TEXT}"}
            metrics["protocol"]["forget_classes"] = [TEXT]
            for part, key in (("data", "name"), ("sampler", "name"), ("plan", "name"), ("classifier", "hash")):
                metrics["protocol"][part][key] = TEXT
            metrics["protocol"][TEXT] = TEXT
            metrics["classifiers"] = {TEXT: {"accuracy": 0.5, "accuracy_noise_aware": 0.5, "n": 9}}
            for scores in metrics["scores"]["w=0"].values():
                scores[TEXT] = 1.0
                scores["per_class"] = {
                    "ua_noise_aware": {TEXT: 1.0},
                    "retain_accuracy": {"b": 1.0, SCRIPT: 0.5},
                    TEXT: {TEXT: 1},
                }
            block = metrics["attacks"].pop("late_start")
            block |= {"title": TEXT, "axis": TEXT, "measure": TEXT, "provenance": metrics["provenance"]}
            block["classifiers"] = metrics["classifiers"]
            block["headline"]["name"] = TEXT
            block["protocol"]["forget_classes"] = [TEXT]
            block["curves"] = {model: {TEXT: by["test images"]} for model, by in block["curves"].items()}
            metrics["attacks"][f"../../../{tmp_path}/out{SCRIPT}"] = block

        rewrite(run, edit)
        (run / "data.json").write_text(json.dumps({"class_names": [TEXT, "b", SCRIPT]}))
        labels = torch.tensor([0, 1, 2])
        images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
        save = {"labels": labels, "seeds": torch.zeros(3, dtype=torch.long)}
        save_file(save | {"w=0/original": images, "w=0/unlearned": images.clone()}, run / "samples.safetensors")
        run.rename(run.parent / f"=cmd <b>{seed}")
    return tmp_path / "runs"


@pytest.mark.filterwarnings("ignore:constrained_layout")  # texts are longer than pictures
def test_texts_of_a_run_are_texts(theirs, tmp_path, capsys):
    before = {path for path in tmp_path.rglob("*") if theirs not in path.parents}
    out = report([theirs])
    assert {path for path in tmp_path.rglob("*") if theirs not in path.parents} == before
    assert all(re.fullmatch(r"[\w.-]+", path.name) for path in out.rglob("*"))
    assert "was not drawn" not in capsys.readouterr().err
    page = Tags((out / "report.html").read_text())
    assert [tag for tag, _ in page.tags].count("script") == 1 and "alert" not in page.content["script"]
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(images) >= 6 and all(source.startswith("data:image/png;base64,") for source in images)
    text = (out / "report.md").read_text()
    assert "<script" not in text and "[a](javascript" not in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    for path in out.glob("*.csv"):
        with path.open(newline="") as file:
            for row in csv.reader(file):
                assert not any(cell.startswith(("=", "@", "\t")) for cell in row), path
    with (out / "results.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["command"].startswith("python -m 'x;' rm")


def test_a_browser_runs_our_script_alone(write_run, tmp_path):
    write_run()
    text = (report([tmp_path]) / "report.html").read_text()
    page = Tags(text)
    (policy,) = (attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("style", "script"):
        content = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def deep(levels):
    value = 0
    for _ in range(levels):
        value = {"a": value}
    return value


DAMAGES = {
    "text for a number": lambda m: m["scores"]["w=0"]["unlearned"].update(ua="0.9"),
    "true for a number": lambda m: m["cost"].update(unlearn_seconds=True),
    "a list for a mapping": lambda m: m.update(protocol=[1]),
    "a list of scores": lambda m: m.update(scores=[1]),
    "models that are none": lambda m: m.update(scores={"w=0": 3}),
    "a number for a model": lambda m: m["scores"]["w=0"].update(unlearned=3),
    "a mapping for a class": lambda m: m["scores"]["w=0"]["unlearned"]["per_class"].update(ua={"3": {}}),
    "no classes": lambda m: m["scores"]["w=0"]["original"].pop("per_class"),
    "no headline figure": lambda m: m["scores"]["w=0"]["unlearned"].pop("ua_noise_aware"),
    "no original": lambda m: m["scores"]["w=0"].pop("original"),
    "a guidance weight that is none": lambda m: m["scores"].update({"w=1:<img src=x>": m["scores"]["w=0"]}),
    "a guidance weight that is a path": lambda m: m["scores"].update({"../x": m["scores"]["w=0"]}),
    "a large number": lambda m: m["training"].update(seed=10**400),
    "a deep protocol": lambda m: m["protocol"].update(deep=deep(300)),
    "a seed that is none": lambda m: m["training"].update(seed="0"),
    "steps that are none": lambda m: m["training"].update(steps=[1]),
    "a plan that is none": lambda m: m["protocol"].update(plan="standard"),
    "torch that is none": lambda m: m["protocol"].update(torch=2),
    "forgotten classes that are none": lambda m: m["protocol"].update(forget_classes="3"),
    "no forgotten classes": lambda m: m["protocol"].update(forget_classes=[]),
    "a long text": lambda m: m["training"].update(method="x" * 10**6),
    "a long key": lambda m: m["cost"].update({"x" * 10**6: 1.0}),
    "a command that is none": lambda m: m["provenance"].update(command=["rm"]),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_metrics_file_of_another_shape_is_one_line_that_names_it(write_run, tmp_path, kind):
    write_run(seed=0)
    rewrite(write_run(seed=1), lambda metrics: DAMAGES[kind](metrics) and None)
    with pytest.raises(UserError, match=r"safemax-1-3/metrics\.json") as said:
        read([tmp_path])
    assert "\n" not in str(said.value) and len(str(said.value)) < 1000


def test_runs_at_other_guidance_weights_are_refused(write_run, tmp_path):
    write_run(seed=0)
    write_run(seed=1, guidance=(0, 2))
    with pytest.raises(UserError, match=r"is scored at w=0, w=2, .* at w=0; report them apart"):
        read([tmp_path])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("samples.safetensors", b"damaged"),
        ("samples.safetensors", None),
        ("metrics.csv", b"step,quick_w0/ua_noise_aware\nx,y\n"),
        ("metrics.csv", b"\xff\xfe"),
        ("metrics.csv", None),
    ],
)
def test_pictures_that_fail_are_a_note(write_run, tmp_path, name, content):
    path = write_run() / name
    if content is None:  # a named pipe, which would hang
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    out = report([tmp_path])
    assert re.search(rf"Pictures are missing: .*{name}", (out / "report.html").read_text())


def test_links_are_not_followed_out_of_the_report(write_run, tmp_path):
    run = write_run()
    (tmp_path / "elsewhere").mkdir()
    (run.parent / "report").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="leads out of"):
        report([run.parent])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "figures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="no report has written"):
        report([run], tmp_path / "out")
    (report([run], tmp_path / "ours") / "figures").rename(tmp_path / "figures")
    (tmp_path / "ours" / "figures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="leads out of"):
        report([run], tmp_path / "ours")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_link_to_a_folder_above_ends(write_run, tmp_path):
    (write_run().parent / "again").symlink_to(tmp_path)
    assert len(read([tmp_path])[0]) == 1


def test_links_are_followed_to_runs_alone(write_run, tmp_path):
    """Others may lead through the whole machine, also to folders that can't be read."""
    run = write_run()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/root").symlink_to("/")
    (tmp_path / "mine/elsewhere").symlink_to(run.parent)
    with pytest.raises(UserError, match="no finished run"):
        read([tmp_path / "mine"])
    (tmp_path / "mine/run").symlink_to(run)
    assert [found.folder.name for found in read([tmp_path / "mine"])[0]] == ["run"]


def test_images_of_an_attack_are_the_runs_own(write_run, write_attack, tmp_path):
    run = write_run()
    write_attack(run)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(run / "attacks" / "late_start-0", elsewhere)
    for folder in ("../../elsewhere", str(elsewhere)):
        rewrite(run, lambda metrics, folder=folder: metrics["attacks"]["late_start"].update(folder=folder))
        (attacked,), (note,) = outcomes(read([run])[0][0])
        assert not attacked.images and "images.safetensors is missing or damaged" in note


def test_a_configuration_of_a_stranger_is_shown_as_it_is_written(write_run, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    run = write_run(settings={"unlearner": {"_target_": "os.system", "command": "x"}})
    cfg = OmegaConf.load(run / "config.yaml")
    cfg.optimizer.lr = "${oc.env:SECRET}"
    OmegaConf.save(cfg, run / "config.yaml")
    out = report([tmp_path])
    assert "oc.env" in (out / "report.html").read_text()
    assert not any(b"hunter2" in path.read_bytes() for path in out.rglob("*") if path.is_file())
