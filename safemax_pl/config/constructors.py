"""Read the arguments of a constructor: the legal keys of a node with `_target_`."""

import ast
import inspect
from typing import Any

import hydra

from safemax_pl.common.errors import UserError
from safemax_pl.common.files import PROJECT
from safemax_pl.config.legal_values import TRAINER


def names_of_arguments(target: str | None) -> set[str]:
    """Return the names of a constructor's arguments.

    Classes of this package are parsed and the Trainer's arguments are known, as importing them would take seconds.
    """
    if target == "lightning.Trainer":
        return TRAINER
    file = (PROJECT / str(target).rpartition(".")[0].replace(".", "/")).with_suffix(".py")
    if not str(target).startswith("safemax_pl.") or not file.is_file():
        return set(arguments_of(target))
    name = str(target).rpartition(".")[2]
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            for part in node.body if isinstance(node, ast.ClassDef) else [node]:
                if isinstance(part, ast.FunctionDef) and part.name in ("__init__", name):
                    found |= {argument.arg for argument in (*part.args.args, *part.args.kwonlyargs)}
    return found - {"self"}


def arguments_of(target: str | None) -> dict[str, Any]:
    """Return name -> annotation of a constructor's arguments.

    Raises:
        UserError: if the target can't be imported.
    """
    if target is None:
        return {}
    try:
        parameters = inspect.signature(hydra.utils.get_object(target)).parameters
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"_target_ {target} can't be imported: {str(error).splitlines()[0]}") from error
    return {name: parameter.annotation for name, parameter in parameters.items() if name not in ("args", "kwargs")}
