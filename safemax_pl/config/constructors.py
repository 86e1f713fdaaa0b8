"""Read the arguments of a constructor: the legal keys of a node with `_target_`.

Its source is parsed, as importing torch or Lightning takes seconds.
"""

import ast
import inspect
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_origin

import hydra

from safemax_pl.common.errors import UserError, first_line, one_line

TYPES = {"int": int, "float": float, "bool": bool, "list": list}


@cache
def arguments_of(target: Any) -> dict[str, type[Any] | None]:
    """Return name -> type of a constructor's arguments: int, float, bool, list, or None for all other types.

    The constructor is imported only if its source does not tell.

    Raises:
        UserError: if the target can't be imported.
    """
    if target is None:
        return {}
    if not isinstance(target, str):
        raise UserError(f"_target_={target!r}: give the dotted name of a class, such as torch.optim.Adam")
    module, _, name = target.rpartition(".")
    found = _parsed(module, name)
    return _imported(target) if found is None else found


def _parsed(module: str, name: str) -> dict[str, type[Any] | None] | None:
    """Return the arguments of a class or function; None if the source does not tell.

    Names that `module` imports are followed, and a class without constructor has that of its first base.
    """
    if (file := _file(module)) is None:
        return None
    for node in reversed(statements(file)):  # the last definition of a name counts
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _parsed(_absolute(module, file, node), alias.name)
        elif isinstance(node, ast.FunctionDef) and node.name == name and not node.decorator_list:
            return _arguments(node.args)
        elif isinstance(node, ast.ClassDef) and node.name == name:
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                    return _arguments(part.args, skip=1)
            plain = all(isinstance(one, ast.Name) and one.id == "final" for one in node.decorator_list)
            base = node.bases[0] if node.bases and plain else None  # a dataclass makes a constructor
            if not isinstance(base, ast.Name) or base.id in ("NamedTuple", name):
                return None
            return _parsed(module, base.id)
    return None


def _file(module: str) -> Path | None:
    """Return the source of a module; only its top-level package is looked up, as Python would import the others."""
    top, *inner = module.split(".")
    try:
        spec = find_spec(top)
    except ValueError:  # no name, or a module without file
        return None
    if spec is None:
        return None
    places = [Path(folder, *inner) for folder in spec.submodule_search_locations or ()]
    files = [file for place in places for file in (place.with_name(f"{place.name}.py"), place / "__init__.py")]
    files += [Path(spec.origin)] if spec.origin and not inner else []
    return next((file for file in files if file.suffix == ".py" and file.is_file()), None)


@cache
def statements(file: Path) -> list[ast.stmt]:
    """Return the top-level statements of a source file; raise `UserError` if Python can't read it."""
    try:
        return ast.parse(file.read_text(encoding="utf-8"), str(file)).body
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{file} is no Python: {one_line(error)}") from error


def _absolute(module: str, file: Path, node: ast.ImportFrom) -> str:
    """Return the absolute name of the module in `from ... import`."""
    parts = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    above = parts[: len(parts) - node.level + 1] if node.level else []
    return ".".join([*above, *([node.module] if node.module else [])])


def _arguments(arguments: ast.arguments, skip: int = 0) -> dict[str, type[Any] | None]:
    """Return name -> type, without the first `skip` arguments, *args and **kwargs."""
    named = [*arguments.posonlyargs, *arguments.args][skip:] + arguments.kwonlyargs
    outer = [(one.arg, getattr(one.annotation, "value", one.annotation)) for one in named]  # list of list[int]
    return {name: TYPES.get(getattr(annotation, "id", "")) for name, annotation in outer}


def _imported(target: str) -> dict[str, type[Any] | None]:
    """Return the arguments of a constructor after importing it."""
    try:
        parameters = inspect.signature(hydra.utils.get_object(target)).parameters
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"_target_ {target} can't be imported: {first_line(error)}") from error
    types = {
        name: get_origin(one.annotation) or one.annotation
        for name, one in parameters.items()
        if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    }
    return {name: found if found in TYPES.values() else None for name, found in types.items()}
