"""Shell files parse."""

import subprocess

import pytest

from safemax_pl.common.files import PROJECT

SCRIPTS = [PROJECT / ".ci/run", *PROJECT.glob("experiments/*/*.sh"), *PROJECT.glob("slurm/*.s*")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_bash_can_parse_it(script):
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
