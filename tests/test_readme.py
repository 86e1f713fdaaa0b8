"""README's commands run, and what it points to exists."""

import re
import shlex

import pytest
from helpers import cached, tiny

from safemax_pl.common.files import PROJECT
from safemax_pl.config.command_line import check_command_line, split_arguments
from safemax_pl.runs.evaluate import evaluate
from safemax_pl.training.fit import fit

README = (PROJECT / "README.md").read_text()
COMMANDS = sorted(
    {
        line.partition("#")[0].strip("` \n")
        for line in re.findall(
            r"python -m safemax_pl[^\n`]*(?:\n[^\n`]+)?(?=`)|^python -m safemax_pl[^\n]*", README, re.MULTILINE
        )
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_accepted(command):
    module, *arguments = shlex.split(command)[2:]
    overrides, flags = split_arguments(arguments)
    assert (PROJECT / f"{module.replace('.', '/')}.py").exists()
    if (
        "--help" in flags
        or module.endswith(("attack", "evaluate", "classifier", "publish", "report", "sweep"))
        or "blank_image" in command
    ):
        return  # run below or in their own tests, or about a file that the reader writes
    config = module.rpartition(".")[2]
    wildcard = [item for item in overrides if not item.endswith("*")]
    check_command_line(config, wildcard)


def test_the_demo_and_its_evaluation_run(tmp_path):
    folder = fit(tiny(tmp_path), "digits_forget1")
    assert (evaluate(str(folder), ["sampler=ddpm", "sampler.steps=3", cached()]) / "samples.png").exists()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (PROJECT / target).exists(), target


def test_every_make_target_that_is_named_exists():
    makefile = (PROJECT / "Makefile").read_text()
    for target in {name for line in re.findall(r"make ((?:[a-z]+ ?)+)", README) for name in line.split()} & {
        "demo", "report", "test", "format", "lint", "weights",
    }:  # fmt: skip
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_experiment_opens_with_its_command_and_needs():
    for path in (PROJECT / "configs/experiment").glob("*.yaml"):
        head = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert head[0] == "# @package _global_", path
        assert any("python -m safemax_pl." in line and f"experiment={path.stem}" in line for line in head), path
