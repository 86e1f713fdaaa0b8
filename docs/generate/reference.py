"""API reference: one page for every module of the package, found by walking its folders."""

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "safemax_pl"


def modules() -> list[Path]:
    """List the modules, relative to the repository's root; empty `__init__.py` files are left out."""
    found = sorted(PACKAGE.rglob("*.py"))
    return [path.relative_to(ROOT) for path in found if path.name != "__init__.py" or path.read_text().strip()]


def dotted(module: Path) -> str:
    """Name a module: `safemax_pl/unlearners/safemax.py` is `safemax_pl.unlearners.safemax`."""
    return ".".join(module.with_suffix("").parts).removesuffix(".__init__")


def page(module: Path) -> str:
    """Locate the page of a module inside docs/."""
    return f"reference/{module.with_suffix('.md')}".replace("__init__.md", "index.md")


def pages() -> dict[str, str]:
    """Page -> text; mkdocstrings fills it from the docstrings."""
    return {page(module): f"# `{dotted(module)}`\n\n::: {dotted(module)}\n" for module in modules()}


def navigation() -> list[dict[str, Any]]:
    """The commands first, then one section a folder."""
    sections: dict[str, list[Any]] = {"commands": []}
    for module in modules():
        inside = module.parts[1:]
        if len(inside) == 1:
            sections["commands"].append({dotted(module).removeprefix("safemax_pl."): page(module)})
        elif inside[1:] == ("__init__.py",):
            sections.setdefault(inside[0], []).insert(0, page(module))  # the section's own page
        else:
            name = dotted(module).removeprefix(f"safemax_pl.{inside[0]}.")
            sections.setdefault(inside[0], []).append({name: page(module)})
    return [{name: entries} for name, entries in sections.items()]
