"""The documentation site: it builds without warnings, and names every module, key, method, attack and metric."""

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from safemax_pl.common.files import PROJECT
from safemax_pl.evaluation.metric_suite import BETTER

CONFIGS = PROJECT / "configs"
DOCS = PROJECT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site. --strict fails on broken links, unknown references and pages outside the navigation."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]  # --quiet turns strict off
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def text_of(page: Path) -> str:
    """The text of a page, without tags."""
    return unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def leaves(node, prefix: str = "") -> list[str]:
    """The dotted keys of all values."""
    if not isinstance(node, dict):
        return [prefix.removesuffix(".")]
    return [leaf for key, value in node.items() for leaf in leaves(value, f"{prefix}{key}.")]


def documented(path: Path) -> list[str]:
    """The keys of a configuration that its page must show."""
    content = OmegaConf.to_container(OmegaConf.load(path)) or {}
    assert isinstance(content, dict)
    for key in ("defaults", "hydra"):
        content.pop(key, None)
    return [key for key in leaves(content) if key and not key.endswith("_partial_")]


def test_every_module_has_a_page(site):
    modules = [path for path in (PROJECT / "safemax_pl").rglob("*.py") if path.name != "__init__.py"]
    assert len(modules) > 50
    for module in modules:
        page = site / "reference" / module.relative_to(PROJECT).with_suffix("") / "index.html"
        assert ".".join(module.relative_to(PROJECT).with_suffix("").parts) in text_of(page)


def test_every_page_can_be_reached_from_the_first(site):
    home = (site / "index.html").read_text()
    linked = {(site / target).resolve() for target in re.findall(r'href="([^"#]*/)"', home)}
    pages = {page.parent for page in site.rglob("index.html")} - {site}
    assert len(pages) > 80
    assert not pages - linked


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS.glob("*.yaml") if "defaults" in OmegaConf.load(path)], ids=str
)
def test_every_key_of_a_command_is_explained(site, path):
    page = text_of(site / f"configuration/{path.stem}/index.html")
    for key in documented(path):
        parts = key.split(".")
        shown = [".".join(parts[:depth]) for depth in range(len(parts), 0, -1)]  # {a: 1} is shown as one value
        assert any(re.search(rf"^{re.escape(one)}$", page, re.MULTILINE) for one in shown) and parts[-1] in page, key


def test_every_key_of_a_group_is_explained(site):
    for path in CONFIGS.glob("*/*.yaml"):
        group = "sweep_spaces" if path.parent.name == "sweep" else path.parent.name
        page = text_of(site / f"configuration/{group}/index.html")
        assert f"{path.parent.name}={path.stem}" in page
        for key in documented(path):
            assert key.rpartition(".")[2] in page, (path, key)


def test_every_key_has_a_meaning():
    """A comment beside it, or a description in the docstring of the class that takes it."""
    sys.path.insert(0, str(DOCS / "generate"))
    try:
        import configuration
    finally:
        sys.path.pop(0)
    lists_of_changes = {"experiment", "setting", "sweep"}
    files = [path for path in CONFIGS.rglob("*.yaml") if path.relative_to(CONFIGS).parts[0] not in lists_of_changes]
    for path in files:
        for key in configuration.keys(path):
            assert key.meaning or not key.value or key.name.endswith("_target_") or path.stem == "wandb_sweep", (
                path,
                key,
            )


@pytest.mark.parametrize(
    ("group", "page"), [("unlearner", "methods"), ("parameters", "methods"), ("attack", "attacks")]
)
def test_tables_have_a_row_for_every_option(group, page):
    rows = re.findall(r"^\| `(\w+)`", (DOCS / f"{page}.md").read_text(), re.MULTILINE)
    for path in (CONFIGS / group).glob("*.yaml"):
        assert rows.count(path.stem) == 1, path.stem


def test_every_metric_is_explained():
    text = (DOCS / "metrics.md").read_text()
    for name in BETTER:
        assert f"`{name.removesuffix('/classifier').removesuffix('/inception')}`" in text, name


def test_every_command_is_shown():
    pages = "\n".join(page.read_text() for page in DOCS.rglob("*.md"))
    for module in (PROJECT / "safemax_pl").glob("*.py"):
        assert module.name == "__init__.py" or f"python -m safemax_pl.{module.stem} " in pages, module
