"""The commands of README, docs and studies run, and what these texts point to exists."""

import re
import shlex
from pathlib import Path

import pytest
from helpers import cached, tiny

from safemax_pl.common.files import PROJECT
from safemax_pl.config.command_line import check_command_line
from safemax_pl.config.compose import compose
from safemax_pl.config.flags import split_arguments
from safemax_pl.config.overrides import parse
from safemax_pl.runs.evaluate import evaluate
from safemax_pl.training.fit import fit

README = (PROJECT / "README.md").read_text()
WRITTEN_BY_THE_READER = ("blank_image", "embedding_noise", "data=fashion")  # in docs/adding
ON_A_FOLDER = ("attack", "certify", "evaluate", "evaluate_classifier", "publish", "report")
TEXTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "experiments/**/*.md", "slurm/*.md", "weights/**/*.md")
    for path in PROJECT.glob(pattern)
    if path.name != "CHANGELOG.md"  # of other versions too
)


def commands(text: str) -> set[str]:
    """Lines of code that start a command of ours, and commands between backticks, which may be wrapped."""
    lines = re.findall(r"^python -m safemax_pl\.[^\n]*", text, re.MULTILINE)
    inline = re.findall(r"`(python -m safemax_pl\.[^`]*)`", text)
    return {" ".join(line.partition(" # ")[0].partition("  ")[0].split()) for line in [*lines, *inline]}


def names(path: Path) -> str:
    return str(path.relative_to(PROJECT))


COMMANDS = sorted({command for path in TEXTS for command in commands(path.read_text())})


def test_commands_are_found():
    assert len(commands(README)) >= 12 and len(COMMANDS) >= 40


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_accepted(command):
    """The command line composes and checks it; only folders that the reader makes are missing."""
    module, *arguments = shlex.split(command)[2:]
    name = module.rpartition(".")[2]
    overrides, flags = split_arguments(arguments)
    assert (PROJECT / f"{module.replace('.', '/')}.py").exists()
    if "--help" in flags or any(mark in command for mark in WRITTEN_BY_THE_READER):
        return
    if name in ("publish", "report"):
        compose(name, [item for item in overrides if "=" in item])
    elif name in ON_A_FOLDER:
        target, *changes = overrides[1:] if "--verify" in flags else overrides
        assert "=" not in target and parse(changes) is not None
    elif name == "sweep":
        ours = [item for item in overrides if item.lstrip("~+").startswith("sweep")]
        compose("sweep", ours)
        compose("fit", [item for item in overrides if item not in ours])
    else:
        overrides = [item for item in overrides if not item.startswith("hydra")]  # of optional launchers
        check_command_line(name, overrides, several=bool({"-m", "--multirun"} & set(flags)))


def test_the_demo_and_its_evaluation_run(tmp_path):
    folder = fit(tiny(tmp_path), "digits_forget1")
    assert (evaluate(str(folder), ["sampler=ddpm", "sampler.steps=3", cached()]) / "samples.png").exists()


@pytest.mark.parametrize("path", TEXTS, ids=names)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
        generated = re.search(r"docs/(configuration/\w+|studies|security|changelog)\.md$", str(path.parent / target))
        assert generated or (path.parent / target).exists(), target


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^(\w+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    for path in TEXTS:
        for line in re.findall(r"^make ([a-z ]+)|`make ([a-z]+)", path.read_text(), re.MULTILINE):
            named = set(" ".join(line).partition("  ")[0].split())
            assert named <= targets, (path, named - targets)


def test_the_first_screen_is_short():
    """One table of at most six rows before the first section."""
    first = README.partition("\n## ")[0]
    assert len(re.findall(r"^\|", first, re.MULTILINE)) <= 8 and first.count("![") == 1
    assert len(first.splitlines()) <= 60


def test_every_experiment_opens_with_its_command_and_needs():
    for path in (PROJECT / "configs/experiment").glob("*.yaml"):
        head = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert head[0] == "# @package _global_", path
        assert any("python -m safemax_pl." in line and f"experiment={path.stem}" in line for line in head), path


def test_a_study_keeps_a_readme_results_and_at_most_one_picture():
    for study in (PROJECT / "experiments").glob("20*"):
        kinds = [path.suffix for path in study.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert kinds.count(".md") == 1 and kinds.count(".png") <= 1 and ".csv" in kinds and ".html" not in kinds, study


@pytest.mark.parametrize("path", TEXTS, ids=names)
def test_files_that_are_named_exist(path):
    """Paths between backticks, but those with placeholders and those that docs/adding tells the reader to write."""
    for named in re.findall(r"`((?:safemax_pl|tests|configs|benchmarks|slurm|docs)/[\w./]+)`", path.read_text()):
        written = any(mark in named for mark in ("blank_image", "embedding_noise", "darkness", "fashion"))
        assert written or (PROJECT / named).exists(), named


def test_tests_that_are_named_exist():
    tests = "\n".join(file.read_text() for file in (PROJECT / "tests").rglob("test_*.py"))
    for path in TEXTS:
        for named in re.findall(r"`(test_\w+)`", path.read_text()):
            assert f"def {named}(" in tests, (path, named)
