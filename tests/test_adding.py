"""The method and the attack of docs/adding/, in a copy of the project: the contract passes, and the commands run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import TINY

from safemax_pl.common.files import PROJECT

DOCS = PROJECT / "docs/adding"
ATTACK = ["weights/digits/without_3", "data=digits", "data.forget_classes=[3]", "trainer=cpu", "sampler.steps=5"]
ATTACK += ["evaluation.guidance=[0]", "attacks.embedding_noise.images_per_class=10", "data.cache_dir=cache"]
COMMANDS = """
from helpers import run_command


def test_the_method():
    done = run_command({fit})
    assert done.returncode == 0, done.stderr


def test_the_attack():
    done = run_command({attack}, module="safemax_pl.attack")
    assert done.returncode == 0, done.stderr
    print(done.stdout)
"""


def files(page: str) -> dict[str, str]:
    """The two files of a page: path -> content. Each block opens with the path in a comment."""
    blocks = re.findall(r"^```(?:python|yaml)\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    found = {re.match(r"# (\S+)\n", block)[1]: block for block in blocks}  # type: ignore[index]
    assert [Path(path).suffix for path in found] == [".py", ".yaml"]
    return found


METHOD, NEW_ATTACK = files("method.md"), files("attack.md")


class Done(NamedTuple):
    """What the tests in the copy printed, and where the copy is."""

    out: str
    project: Path


@pytest.fixture(scope="module")
def name() -> str:
    (name,) = {Path(path).stem for path in METHOD}
    return name


@pytest.fixture(scope="module")
def done(tmp_path_factory, name) -> Done:
    """One process for all: most of its time goes into imports."""
    root = tmp_path_factory.mktemp("project")
    for folder in ("safemax_pl", "configs", "tests/unlearners"):
        shutil.copytree(PROJECT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("tests/conftest.py", "tests/helpers.py", "setup.cfg"):
        shutil.copy(PROJECT / file, root / file)
    (root / "weights").symlink_to(PROJECT / "weights")
    for path, content in {**METHOD, **NEW_ATTACK}.items():
        (root / path).write_text(content)
    fit = [*TINY, f"unlearner={name}", "logger=csv", "name=own", "data.cache_dir=cache"]
    attack = [*ATTACK, "attack=embedding_noise"]
    words = {part: ", ".join(map(repr, arguments)) for part, arguments in {"fit": fit, "attack": attack}.items()}
    (root / "tests/test_commands.py").write_text(COMMANDS.format(**words))
    tests = ["tests/unlearners/test_contract.py", "tests/test_commands.py", "-k", f"{name} or test_commands"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "pytest", *tests, "-p", "no:cacheprovider", "-rA"]
    ended = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return Done(ended.stdout, root)


@pytest.mark.parametrize("path", [*METHOD, *NEW_ATTACK])
def test_it_is_new(path):
    """Or the page would describe a file that is already there."""
    assert not (PROJECT / path).exists()


def test_a_method_is_short():
    assert all(len(content.splitlines()) <= 20 for content in METHOD.values())


def test_the_method_passes_the_contract(done, name):
    passed = re.findall(rf"^PASSED tests/unlearners/test_contract.py::\S+\[.*{name}", done.out, re.MULTILINE)
    assert len(passed) >= 8 and not re.search(r"^FAILED", done.out, re.MULTILINE)


def test_the_command_of_the_method_fits_and_names_it(done, name):
    assert f"unlearner={name}" in (DOCS / "method.md").read_text()
    metrics = json.loads((done.project / "runs/own/metrics.json").read_text())
    assert metrics["training"]["method"] == name


def test_the_attack_finds_the_class_in_the_original_alone(done):
    assert re.search(r"│ +1 +│ +0 +│", done.out)
