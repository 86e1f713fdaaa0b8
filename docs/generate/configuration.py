"""Configuration reference: a table of every key in configs/, with the meaning from its comment or its class."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import griffe
import yaml

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
COMMENT = re.compile(r"""((?:[^'"#]|"[^"]*"|'[^']*'|(?<=\S)#)*?)(?:(?:^|\s+)#\s?(.*))?$""")
TITLES = {"parameters": "Trainable parameters", "sweep": "Search spaces", "unlearner": "Methods"}  # others: the group


class Key(NamedTuple):
    """One row of a table: a dotted key, its value as written, and its meaning; groups of keys have no value."""

    name: str
    value: str
    meaning: str


def split(line: str) -> tuple[str, str]:
    """Split a line of YAML into content and comment."""
    match = COMMENT.match(line)
    assert match is not None, line
    return match[1].rstrip(), (match[2] or "").strip()


def keys(path: Path) -> list[Key]:
    """List all keys of a file in order, without `defaults`, `hydra` and `_partial_`.

    A key without a comment has the meaning of the constructor's argument, or of the same key in the option that this
    file starts from.
    """
    text = path.read_text()
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    inherited = {key.name: key.meaning for base in bases(path) for key in keys(base)}
    found = _keys(node, text.splitlines()) if node is not None else []
    return [key._replace(meaning=key.meaning or inherited.get(key.name, "")) for key in found]


def bases(path: Path) -> list[Path]:
    """Find the options of the same group that a file starts from."""
    defaults = (yaml.safe_load(path.read_text()) or {}).get("defaults", [])
    return [path.with_name(f"{base}.yaml") for base in defaults if isinstance(base, str) and base != "_self_"]


def _keys(node: yaml.MappingNode, lines: list[str], prefix: str = "") -> Iterator[Key]:
    target = next((value.value for key, value in node.value if key.value == "_target_"), "")
    for key, value in node.value:
        if key.value == "_partial_" or (not prefix and key.value in ("defaults", "hydra")):
            continue
        nested = isinstance(value, yaml.MappingNode) and not value.flow_style
        first, last = key.start_mark.line, key.start_mark.line if nested else value.end_mark.line
        meaning = _comment(lines, first, last) or arguments(target).get(key.value, "")
        yield Key(prefix + key.value, "" if nested else _text(lines, value), meaning)
        if nested:
            yield from _keys(value, lines, f"{prefix}{key.value}.")


def _text(lines: list[str], node: yaml.Node) -> str:
    """A value as it is written, in one line."""
    start, end = node.start_mark, node.end_mark
    if start.line == end.line:
        return lines[start.line][start.column : end.column]
    inside = [split(line)[0].strip() for line in lines[start.line : end.line + (end.column > 0)]]
    return " ".join(part for part in inside if part)


def _comment(lines: list[str], first: int, last: int) -> str:
    """The comment beside a key, continued by indented lines of comment below it."""
    found = [split(line)[1] for line in lines[first : last + 1] if split(line)[0]]
    for line in lines[first + 1 :]:
        content, comment = split(line)
        if content or not line.startswith(" "):
            break
        found.append(comment)
    return " ".join(part for part in found if part)


@cache
def package() -> Any:
    """Read the package without importing it."""
    return griffe.load("safemax_pl", search_paths=[str(ROOT)], docstring_parser="google")


@cache
def arguments(target: str) -> dict[str, str]:
    """Map each argument of a class or function of ours to its meaning, from its docstring and those of its bases."""
    if not target.startswith("safemax_pl."):
        return {}
    found = package()[target.removeprefix("safemax_pl.")]
    classes = [base for base in found.mro() if base.path.startswith("safemax_pl.")] if found.is_class else []
    meanings: dict[str, str] = {}
    for one in [*reversed(classes), found]:
        for section in one.docstring.parse("google", warnings=False) if one.docstring else ():
            if section.kind is griffe.DocstringSectionKind.parameters:
                for item in section.value:
                    meaning = " ".join(item.description.split()).removesuffix(".")
                    for name in re.split(r",\s*", item.name):
                        if not (meaning.startswith("see `") and name in meanings):  # the base says more
                            meanings[name] = meaning
    return meanings


def escape(text: str) -> str:
    """Escape what Markdown would format, outside of `code`."""
    special = {"*": "\\*", "|": "\\|", "<": "&lt;"}
    return re.sub(r"`[^`]*`|[*|<]", lambda match: special.get(match[0], match[0]), text)


def header(path: Path) -> str:
    """The comments that open a file, as text; lines with a command become code."""
    opening = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            opening.append(line.lstrip("#").strip())
    return "\n".join(f"\n    {line}\n" if line.startswith("python -m") else escape(line) for line in opening)


def prefix(path: Path) -> str:
    """Where the keys of an option are on the command line, such as `data.`."""
    if "@package _global_" in path.read_text().partition("\n")[0]:
        return ""
    return f"attacks.{path.stem}." if path.parent.name == "attack" else f"{path.parent.name}."


def table(rows: list[Key], before: str = "") -> str:
    """A Markdown table of keys. A group of keys without a comment gets no row."""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for name, value, meaning in rows:
        if not value and not meaning:
            continue
        shown = f"`{value}`".replace("|", "\\|") if value else ""
        if name.rpartition(".")[2] == "_target_":
            shown = f"[{shown}][{value}]" if value.startswith("safemax_pl.") else shown
            meaning = "class or function that takes the keys beside it"
        lines.append(f"| `{before}{name}` | {shown} | {escape(meaning)} |")
    return "\n".join(lines)


def content(path: Path) -> str:
    """The text of a file without its comments."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return "\n".join(["```yaml", *lines, "```"])


def section(path: Path) -> str:
    """One option of a group: its header, the option it starts from, its keys or, for lists of changes, its text."""
    parts = [f"## `{path.parent.name}={path.stem}`", header(path)]
    if bases(path):
        parts.append(f"Starts from {' and '.join(f'`{base.stem}`' for base in bases(path))}.")
    if path.parent.name in ("experiment", "sweep"):
        parts.append(content(path))
    elif path.parent.name == "setting":
        for file in sorted(path.with_suffix("").glob("*.yaml")):
            parts += [f"### `unlearner={file.stem} setting={path.stem}`", header(file), content(file)]
    elif rows := keys(path):
        parts.append(table(rows, prefix(path)))
    return "\n\n".join(parts)


def command_page(path: Path) -> str:
    """The page of a command's file: the groups that it chooses from, then its keys."""
    chosen = ["| group | default | meaning |", "|---|---|---|"]
    for line in path.read_text().splitlines():
        content, comment = split(line)
        match = re.match(r"\s+- (\w+): (\S+)$", content)
        if match and (CONFIGS / match[1]).is_dir():
            chosen.append(f"| [`{match[1]}=`]({group_page(match[1])}) | `{match[2]}` | {escape(comment)} |")
    groups = "## Groups\n\n" + "\n".join(chosen)
    return "\n\n".join([f"# {path.stem}", header(path), groups, "## Keys", table(keys(path))])


def group_page(group: str) -> str:
    """The file name of a group's page; `sweep` is the name of a command too."""
    return "sweep_spaces.md" if group == "sweep" else f"{group}.md"


def pages() -> dict[str, str]:
    """Page -> text: the commands' files, then the groups."""
    commands = [path for path in sorted(CONFIGS.glob("*.yaml")) if "defaults:" in path.read_text()]
    found = {f"configuration/{path.stem}.md": command_page(path) for path in commands}
    for folder in sorted(folder for folder in CONFIGS.iterdir() if folder.is_dir()):
        sections = [section(path) for path in sorted(folder.glob("*.yaml"))]
        title = f"# {TITLES.get(folder.name, folder.name.capitalize())}: `{folder.name}=`"
        found[f"configuration/{group_page(folder.name)}"] = "\n\n".join([title, *sections])
    return found


def navigation() -> list[str]:
    """The pages in their order; MkDocs takes the titles from them."""
    return list(pages())
