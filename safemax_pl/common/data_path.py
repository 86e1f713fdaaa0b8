"""Check `data.path`, without reading the data."""

from pathlib import Path

from safemax_pl.common.errors import UserError, first_line

DIGITS = "sklearn/digits"


def check_path(path: str) -> str:
    """Return `path` with ~ expanded. It is `sklearn/digits`, a folder or a hub id.

    Raises:
        UserError: for an empty or unreadable path, a file, and a folder that does not exist.
    """
    if not isinstance(path, str) or not path.strip():
        raise UserError(
            f"data.path={path!r}: give {DIGITS}, an existing folder (one that reads like a number as ./2024) or a "
            "hub id such as uoft-cs/cifar10"
        )
    try:
        folder = Path(path).expanduser() if path.startswith("~") else Path(path)
        here, folder_here = folder.exists(), folder.is_dir()
    except (OSError, RuntimeError) as error:  # too long, or ~ of an unknown user
        raise UserError(f"data.path {path} can't be read ({first_line(error)}): give another folder") from error
    if here and not folder_here:
        raise UserError(f"data.path {path} is a file: give the folder that holds it")
    if not here and (folder.is_absolute() or path.startswith(".") or path.count("/") != 1):
        raise UserError(
            f"data.path {path} does not exist: give {DIGITS}, an existing folder or a hub id such as uoft-cs/cifar10"
        )
    return str(folder) if path.startswith("~") else path
