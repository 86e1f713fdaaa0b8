"""The method of docs/adding/method.md, copied into a copy of the project, passes the contract and fits."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TINY

from safemax_pl.common.files import PROJECT

PAGE = (PROJECT / "docs/adding/method.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def name() -> str:
    ((code,), (config,)) = blocks("python"), blocks("yaml")
    names = {
        re.match(pattern, block)[1]
        for pattern, block in (
            (r"# safemax_pl/unlearners/(\w+)\.py\n", code),
            (r"# configs/unlearner/(\w+)\.yaml\n", config),
        )
    }
    assert len(names) == 1, f"the two files have different names: {names}"
    return names.pop()


@pytest.fixture(scope="module")
def project(tmp_path_factory, name) -> Path:
    """A copy of the project with the page's two files in it."""
    root = tmp_path_factory.mktemp("project")
    for folder in ("safemax_pl", "configs", "tests/unlearners"):
        shutil.copytree(PROJECT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("tests/conftest.py", "tests/helpers.py", "setup.cfg"):
        shutil.copy(PROJECT / file, root / file)
    (root / "weights").symlink_to(PROJECT / "weights")
    (root / f"safemax_pl/unlearners/{name}.py").write_text(blocks("python")[0])
    (root / f"configs/unlearner/{name}.yaml").write_text(blocks("yaml")[0])
    return root


def run(project: Path, *arguments: str) -> str:
    """Run a module of the copy; gives what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(project)}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_new(name):
    """Or the page would describe a file that is already there."""
    assert not (PROJECT / f"safemax_pl/unlearners/{name}.py").exists()
    assert not (PROJECT / f"configs/unlearner/{name}.yaml").exists()


def test_it_is_short():
    assert all(len(block.splitlines()) <= 20 for block in (*blocks("python"), *blocks("yaml")))


def test_it_passes_the_contract(project, name):
    out = run(project, "pytest", "tests/unlearners/test_contract.py", "-k", name, "-p", "no:cacheprovider")
    (passed,) = re.findall(r"(\d+) passed", out)
    assert int(passed) >= 8 and "failed" not in out


def test_its_command_fits_and_names_it(project, name):
    assert f"unlearner={name}" in PAGE
    run(project, "safemax_pl.fit", *TINY, f"unlearner={name}", "logger=csv", "name=own", "data.cache_dir=cache")
    metrics = json.loads((project / "runs/own/metrics.json").read_text())
    assert metrics["training"]["method"] == name
