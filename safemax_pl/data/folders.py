"""Splits and classes of a folder: images by split and class folder, parquet files by split."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from safemax_pl.common.errors import UserError
from safemax_pl.common.names import normalized
from safemax_pl.data.encoded import Encoded, EncodedSplit, Skipped, check_class_name
from safemax_pl.data.tree import Folder

# The names that `datasets` knows. A name such as `test_images` or `train-00000-of-00004.parquet` contains one as a word
SPLITS = {
    "train": {"train", "training"},
    "test": {"test", "testing", "eval", "evaluation"},
    "validation": {"validation", "valid", "val", "dev"},
}
EXACT = set().union(*SPLITS.values())
LAYOUT = "train/<class>/*.png and test/<class>/*.png, or <class>/*.png"
OUTSIDE = "images outside of class folders"
UNUSED = "images of the validation split, as there is a test split"


def role_of(name: str) -> str | None:
    """Return the split that a name contains as a word; None for no split, or several."""
    words = set(re.split(r"[^a-z]+", name.casefold()))
    found = [split for split, names in SPLITS.items() if names & words]
    return found[0] if len(found) == 1 else None


def images_of(tree: Folder, skipped: Skipped) -> Encoded:
    """Return the labelled images of a tree of class folders; classes are sorted by name.

    Args:
        tree: of `walk`.
        skipped: gets the images left out.

    Raises:
        UserError: as `splits_of`.
    """
    splits = splits_of(tree, skipped)
    if "test" in splits and "validation" in splits:
        skipped[UNUSED] += [str(file) for files in splits.pop("validation").values() for file in files]
    names = sorted({name for classes in splits.values() for name in classes})
    label_of = {name: label for label, name in enumerate(names)}
    encoded = {}
    for split, classes in splits.items():
        rows = sorted((str(file), label_of[name]) for name, files in classes.items() for file in files)
        files = [Path(file) for file, _ in rows]
        encoded[split] = EncodedSplit([label for _, label in rows], [-1] * len(rows), partial(_named, files))
    return Encoded(encoded, names, [], skipped)


def _named(files: list[Path]) -> Iterator[tuple[str, Path]]:
    return ((str(file), file) for file in files)


def splits_of(tree: Folder, skipped: Skipped) -> dict[str, dict[str, list[Path]]]:
    """Return the images by split and class, such as `{"train": {"cat": [...]}, "test": {"cat": [...]}}`.

    Args:
        tree: of `walk`.
        skipped: gets the images left out.

    Raises:
        UserError: for images without class folders, for nested class folders, and for ambiguous splits.
    """
    root = tree.path
    tree = _inside(tree, lambda name: role_of(name) is None)
    by_role: dict[str, list[Folder]] = {}
    for name, folder in tree.folders.items():
        if (role := role_of(name)) is not None:
            by_role.setdefault(role, []).append(folder)
    if not any(folder.folders for folder in by_role.get("train", [])):
        _check_classes_at_the_top(tree, root, by_role)
        return {"train": _classes(tree, root, skipped)}
    chosen = _one_folder_each(by_role, root)
    _skip_other_folders(tree, root, chosen["train"], skipped)
    skipped[OUTSIDE] += _relative(tree.images, root)
    splits = {}
    for role in [role for role in SPLITS if role in chosen]:
        if chosen[role].folders:
            splits[role] = _classes(_inside(chosen[role], lambda _: True), root, skipped)
        else:
            skipped[OUTSIDE] += _relative(chosen[role].images, root)
    return splits


def _check_classes_at_the_top(tree: Folder, root: Path, by_role: dict[str, list[Folder]]) -> None:
    """Raise `UserError` unless the top folders can be classes: without a train/ folder of classes they must be."""
    if any(folder.folders for folders in by_role.values() for folder in folders):
        raise UserError(
            f"data.path {root} has no train/ with class folders, only {', '.join(tree.folders)}: expected {LAYOUT}"
        )
    if not tree.folders or all(name.casefold() in EXACT for name in tree.folders):
        raise UserError(
            f"data.path {root} holds images, but no folders that name their classes ({tree.files()[0]}): put "
            f"them into folders as {LAYOUT}"
        )


def _one_folder_each(by_role: dict[str, list[Folder]], root: Path) -> dict[str, Folder]:
    """Return the folder of each split. Raise `UserError` for a split with several."""
    for role, folders in by_role.items():
        if len(folders) > 1:
            raise UserError(
                f"data.path {root}: which is the {role} split, {' or '.join(folder.path.name for folder in folders)}? "
                "Move the others away"
            )
    return {role: folders[0] for role, folders in by_role.items()}


def _skip_other_folders(tree: Folder, root: Path, train: Folder, skipped: Skipped) -> None:
    """Skip top folders that are not splits. Raise `UserError` if that makes it unclear whether `train` is one."""
    for name, folder in tree.folders.items():
        if role_of(name) is not None:
            continue
        if train.path.name.casefold() not in SPLITS["train"]:
            raise UserError(
                f"data.path {root}: {train.path.name} looks like a split and {name} does not: expected {LAYOUT}; "
                "rename the first, or move the second away"
            )
        skipped["folders that are not splits"].append(str(folder.path.relative_to(root)))


def tables_of(tree: Folder, skipped: Skipped) -> dict[str, list[Path]]:
    """Return the parquet files by split, in the hub's layouts: train-00000-of-00002.parquet or train/0000.parquet.

    If no file names a split and there are no images, all files are the training split, as in `datasets`.

    Args:
        tree: of `walk`.
        skipped: gets the files of no split. Beside images they are taken for metadata.

    Raises:
        UserError: if a split has files in several folders, as repositories with several configurations have.
    """
    found: dict[str, list[Path]] = {}
    none: list[Path] = []
    files = tree.files()
    for file in [file for file in files if file.suffix.lower() == ".parquet"]:
        above = reversed(file.relative_to(tree.path).parent.parts)
        role = next((role for name in (file.stem, *above) if (role := role_of(name))), None)
        (none if role is None else found.setdefault(role, [])).append(file)
    if none and len(none) == len(files):
        found, none = {"train": none}, []
    skipped["parquet files of no split"] += _relative(none, tree.path)
    for split, files in found.items():
        if len(folders := sorted({file.parent for file in files})) > 1:
            raise UserError(
                f"data.path {tree.path}: the {split} split has parquet files in {len(folders)} folders "
                f"({folders[0]}, {folders[1]}): give one of them as data.path"
            )
    return found


def _inside(folder: Folder, may_enter: Callable[[str], bool]) -> Folder:
    """Descend through folders that hold nothing but one folder of folders, such as data/train/."""
    while not folder.images and len(folder.folders) == 1:
        (name, inner), *_ = folder.folders.items()
        if not inner.folders or not may_enter(name):
            break
        folder = inner
    return folder


def _relative(files: list[Path], root: Path) -> list[str]:
    return [str(file.relative_to(root)) for file in files]


def _classes(split: Folder, root: Path, skipped: Skipped) -> dict[str, list[Path]]:
    """Return images by class. Names are in Unicode's composed form: macOS writes é as e and an accent."""
    skipped[OUTSIDE] += _relative(split.images, root)
    classes: dict[str, list[Path]] = {}
    for folder in split.folders.values():
        if folder.folders:
            inner = next(iter(folder.folders.values()))
            raise UserError(
                f"{inner.path} holds images below the class folder {folder.path}: put images directly into their class "
                f"folders ({LAYOUT}), or give the folder above the classes as data.path"
            )
        name = normalized(folder.path.name)
        check_class_name(name, f"the class folder {str(folder.path)!r}")
        if name in classes:
            raise UserError(f"{folder.path.parent} has two folders that read {name}: rename one")
        classes[name] = folder.images
    return classes
