"""The command from real runs to a page, and its table in a browser."""

import base64
import hashlib
import json
import shutil
import subprocess
import sys

import pytest
from helpers import tiny

from safemax_pl.common.errors import UserError
from safemax_pl.report import main
from safemax_pl.reports.figures import curves, heat_maps, samples, trade_offs
from safemax_pl.reports.report import report
from safemax_pl.training.fit import fit


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    main()


def test_real_runs_become_a_report(tmp_path, monkeypatch, capsys):
    for unlearner in ("safemax", "retain_only"):
        fit(tiny(tmp_path, f"unlearner={unlearner}"), unlearner)
    run_main(monkeypatch, tmp_path, 'title="Two methods"')
    assert "2 runs, 2 methods" in capsys.readouterr().out
    text = (tmp_path / "report" / "report.md").read_text()
    scores = json.loads((tmp_path / "safemax" / "metrics.json").read_text())["scores"]["w=0"]
    assert text.startswith("# Two methods\n")
    for model in ("original", "unlearned", "normal_noise"):
        assert f"{scores[model]['fid_retain/classifier']:.3g}" in text
    names = {path.name for path in (tmp_path / "report" / "figures").iterdir()}
    assert {"w0-samples.png", "w0-curve-ua_noise_aware.png", "w0-classes-retain_accuracy.png"} <= names
    for name in ("results.csv", "summary.csv", "report.html"):
        assert (tmp_path / "report" / name).exists()


def test_out_may_be_elsewhere_and_nothing_else_is_touched(write_run, tmp_path, monkeypatch):
    write_run()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    run_main(monkeypatch, tmp_path / "runs", f"out={tmp_path / 'out'}")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["figures", "mine.txt", "per_class.csv", "report.html", "report.md", "results.csv", "summary.csv"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["safemax-0-3"]


def test_a_report_is_not_read_as_a_run_and_comes_out_the_same_again(write_run, tmp_path):
    write_run()
    out = report([tmp_path / "runs"])
    before = (out / "report.html").read_bytes()
    assert report([tmp_path / "runs"]) == out
    assert (out / "report.html").read_bytes() == before


def test_a_report_replaces_no_report_of_more_runs_and_no_other_files(write_run, tmp_path, monkeypatch):
    for module, draw in ((curves, "curves"), (trade_offs, "trade_offs")):
        monkeypatch.setattr(module, draw, lambda *_: [])  # most of the time
    first, second = write_run("a"), write_run("b")
    every = report([tmp_path / "runs"])
    before = (every / "report.html").read_bytes()
    assert report([first]) == first / "report"
    with pytest.raises(UserError, match=r"report reports 1 run not among these .*out=FOLDER"):
        report([first, write_run("c")])
    assert (every / "report.html").read_bytes() == before
    report([first, second], every)  # named, so wanted
    taken = "no report has written"
    files = {"config.yaml": "is a run", "results.csv": taken, "figures/w0-samples.png": taken, "report.html": taken}
    for number, (name, line) in enumerate(files.items()):
        file = tmp_path / str(number) / name
        file.parent.mkdir(parents=True)
        file.write_text("mine, about safemax_pl")
        with pytest.raises(UserError, match=line):
            report([first], tmp_path / str(number))
        assert file.read_text() == "mine, about safemax_pl"


def test_an_interrupted_report_is_written_by_the_same_command(write_run, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    write_run()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(heat_maps, "heat_maps", killed)
        report([tmp_path / "runs"])
    assert "was interrupted" in (tmp_path / "runs/report/report.html").read_text()
    assert "<h1>" in (report([tmp_path / "runs"]) / "report.html").read_text()


def test_a_picture_that_fails_is_left_out_of_the_page(write_run, tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise ValueError("no room")

    write_run("a$_$b")
    monkeypatch.setattr(samples, "samples", fails)
    text = (report([tmp_path / "runs"]) / "report.html").read_text()
    assert "a$_$b" in text and "data:image/png" in text
    assert "was not drawn (ValueError: no room)" in capsys.readouterr().err


def test_runs_that_are_left_out_are_named_on_stderr_and_on_the_page(write_run, tmp_path, monkeypatch, capsys):
    write_run()
    (write_run("b") / "metrics.json").unlink()
    run_main(monkeypatch, tmp_path)
    assert "b-0-3 is left out: it was interrupted or failed" in capsys.readouterr().err
    assert (
        "b-0-3 is left out: it was interrupted or failed" in (tmp_path / "runs" / "report" / "report.html").read_text()
    )


def test_mixed_protocols_end_in_one_line(write_run, tmp_path, monkeypatch, capsys):
    write_run("a")
    write_run("b", protocol={"sampler.steps": 50})
    with pytest.raises(SystemExit) as ended:
        run_main(monkeypatch, tmp_path)
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: these runs can't stand in one table: sampler.steps is 25 in ")
    assert not (tmp_path / "runs" / "report").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fid_retain/classifier", float("nan")),
        ("drift", float("-inf")),
        ("ua_noise_aware", 1.01),
        ("retain_accuracy", -0.1),
        ("ua_noise_aware/second", 2.0),
    ],
)
def test_what_is_no_score_is_refused_and_names_the_run(write_run, tmp_path, name, value):
    write_run("a")
    write_run("lost", scores={name: value})
    with pytest.raises(UserError, match=r"lost-0-3/metrics\.json is damaged .*expected (finite numbers|a number in)"):
        report([tmp_path / "runs"])


@pytest.mark.parametrize("seconds", [-1.0, 1e308])
def test_what_is_no_cost_is_refused_and_names_the_run(write_run, tmp_path, seconds):
    write_run("a")
    write_run("lost", cost={"unlearn_seconds": seconds, "preparation_seconds": seconds})
    with pytest.raises(UserError, match=r"lost-0-3/metrics\.json is damaged .*cost\.\w+_seconds is"):
        report([tmp_path / "runs"])


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CLICKS = """
const buttons = [...document.querySelectorAll("table.sortable")[0].tHead.querySelectorAll("button")];
const at = buttons.findIndex(button => button.textContent.startsWith("unlearn_seconds"));
const order = () => [...document.querySelector("table.sortable tbody").rows].map(row => row.cells[0].dataset.value);
const found = [];
for (let click = 0; click < 2; click++) {
  buttons[at].click();
  found.push([buttons[at].parentElement.getAttribute("aria-sort"), ...order()]);
}
buttons[0].click();
found.push([buttons[at].parentElement.getAttribute("aria-sort"), ...order()]);
document.body.textContent = JSON.stringify(found);
"""


@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium")
def test_header_buttons_sort_in_a_browser(write_run, tmp_path):
    for method, seconds in (("a", 9.0), ("b", 100.0), ("c", 20.0)):
        write_run(method, cost={"unlearn_seconds": seconds})
    page = report([tmp_path / "runs"]) / "report.html"
    clicked = tmp_path / "clicked.html"
    ours = f"script-src 'sha256-{base64.b64encode(hashlib.sha256(CLICKS.encode()).digest()).decode()}'"
    text = page.read_text().replace("script-src", ours, 1)  # else the page's policy lets only its own script run
    clicked.write_text(text.replace("</body>", f"<script>{CLICKS}</script></body>"))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{clicked}"]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout
    ascending, descending, by_name = json.loads(dumped.partition("<body>")[2].partition("</body>")[0])
    rest = ["Original", "normal_noise", "uniform_noise"]
    assert ascending == ["ascending", "a", "c", "b", *rest]
    assert descending == ["descending", "b", "c", "a", *rest]
    assert by_name[:4] == [None, "a", "b", "c"]
