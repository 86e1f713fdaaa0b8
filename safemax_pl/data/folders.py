"""What a data folder holds: its images by split and class, its parquet files by split.

Folders are read here and not by `datasets`' imagefolder, whose `data_files` are patterns: `[`, `*` and `{` in names are
operators there. It also takes the nearest folder as the class, in whatever split or superclass that is.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from safemax_pl.common.errors import UserError
from safemax_pl.data.decoding import ENDINGS

# The names that `datasets` knows; a folder `test_images` or a file `train-00000-of-00004.parquet` holds one as a word.
SPLITS = {
    "train": {"train", "training"},
    "test": {"test", "testing", "eval", "evaluation"},
    "validation": {"validation", "valid", "val", "dev"},
}
EXACT = set().union(*SPLITS.values())
# Besides names that begin with a dot: what macOS, Windows, Python, file systems and network disks leave in folders.
HIDDEN = {"__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"}
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, bytes that are no UTF-8, line breaks
MAX_VISITS = 16  # of one folder by different links
LAYOUT = "train/<class>/*.png and test/<class>/*.png, or <class>/*.png"

Skipped = defaultdict[str, list[str]]  # why -> what


@dataclass
class Folder:
    """A folder with everything below it that can be read; folders without any of it are left out.

    Attributes:
        path: as it is reached from the root, through links.
        images, tables: files in it, parquet files being tables.
        folders: by name.
    """

    path: Path
    images: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    folders: dict[str, "Folder"] = field(default_factory=dict)

    def files(self) -> list[Path]:
        """All images and tables, ordered by path."""
        below = [file for folder in self.folders.values() for file in folder.files()]
        return sorted([*self.images, *self.tables, *below], key=str)


def walk(root: Path) -> tuple[Folder, Skipped]:
    """Find all images and parquet files below `root`, through links, hidden ones left out.

    Raises:
        UserError: for a link to nothing, which may be a class that is not there, for folders that can't be read, and
            for links that lead to one folder again and again.
    """
    skipped: Skipped = defaultdict(list)
    visits: Counter[Path] = Counter()

    def note(why: str, path: Path) -> None:
        skipped[why].append(str(path.relative_to(root)))

    def visit(path: Path, above: tuple[Path, ...]) -> Folder:
        folder, real = Folder(path), path.resolve()
        visits[real] += 1
        if visits[real] > MAX_VISITS:
            raise UserError(f"links in {root} lead to {real} more than {MAX_VISITS} times: remove some")
        for entry in sorted(path.iterdir()):
            if entry.name.startswith(".") or entry.name.casefold() in HIDDEN:
                note("hidden", entry)
            elif entry.is_dir():
                if entry.resolve() in (*above, real):
                    note("links to a folder above them", entry)
                    continue
                inner = visit(entry, (*above, real))
                if inner.images or inner.tables or inner.folders:
                    folder.folders[entry.name] = inner
                else:
                    note("folders without images", entry)
            elif entry.is_file():
                ending = entry.suffix.lower()
                if ending in ENDINGS:
                    folder.images.append(entry)
                elif ending == ".parquet":
                    folder.tables.append(entry)
                else:
                    note(f"files that end in {ending}, which are not read" if ending else "files without ending", entry)
            elif entry.is_symlink():
                raise UserError(f"{entry} is a link to nothing: repair or remove it")
            else:
                note("neither files nor folders", entry)
        return folder

    try:
        return visit(root, ()), skipped
    except (OSError, RecursionError) as error:
        raise UserError(f"data.path {root} can't be read ({error}): make its files and folders readable") from error


def role_of(name: str) -> str | None:
    """The split that a name speaks of, by a word in it; None if there is none, or several."""
    words = set(re.split(r"[^a-z]+", name.casefold()))
    found = [split for split, names in SPLITS.items() if names & words]
    return found[0] if len(found) == 1 else None


def splits_of(tree: Folder, skipped: Skipped) -> dict[str, dict[str, list[Path]]]:
    """Images by split and class: `{"train": {"cat": [...]}}`, and "test" and "validation" where they have classes.

    Raises:
        UserError: for images without class folders, classes in folders inside each other, and splits that are unclear.
    """
    root = tree.path
    tree = _inside(tree, lambda name: role_of(name) is None)
    by_role: dict[str, list[Folder]] = {}
    for name, folder in tree.folders.items():
        if (role := role_of(name)) is not None:
            by_role.setdefault(role, []).append(folder)
    if not any(folder.folders for folder in by_role.get("train", [])):
        if any(folder.folders for folders in by_role.values() for folder in folders):
            raise UserError(
                f"data.path {root} has no train/ with class folders, only {', '.join(tree.folders)}: expected {LAYOUT}"
            )
        if not tree.folders or all(name.casefold() in EXACT for name in tree.folders):
            raise UserError(
                f"data.path {root} holds images, but no folders that name their classes ({tree.files()[0]}): put "
                f"them into folders as {LAYOUT}"
            )
        return {"train": _classes(tree, root, skipped)}
    for role, folders in by_role.items():
        if len(folders) > 1:
            raise UserError(
                f"data.path {root}: which is the {role} split, {' or '.join(folder.path.name for folder in folders)}? "
                "Move the others away"
            )
    chosen = {role: folders[0] for role, folders in by_role.items()}
    for name, folder in tree.folders.items():
        if role_of(name) is None:
            if chosen["train"].path.name.casefold() not in SPLITS["train"]:
                raise UserError(
                    f"data.path {root}: {chosen['train'].path.name} looks like a split, and {name} is none: expected "
                    f"{LAYOUT}; rename the first, or move the second away"
                )
            skipped["folders that are no split"].append(str(folder.path.relative_to(root)))
    skipped["images outside of class folders"] += _relative(tree.images, root)
    splits = {}
    for role in [role for role in SPLITS if role in chosen]:
        if chosen[role].folders:
            splits[role] = _classes(_inside(chosen[role], lambda _: True), root, skipped)
        else:
            skipped["images outside of class folders"] += _relative(chosen[role].images, root)
    return splits


def tables_of(tree: Folder, skipped: Skipped) -> dict[str, list[Path]]:
    """Parquet files by split, in the hub's layouts: train-00000-of-00002.parquet, or train/0000.parquet.

    Without any name of a split, all files are the training split, as for `datasets`; beside images they are metadata.

    Raises:
        UserError: when a split has files in several folders, as repositories with several configurations have.
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
                f"({folders[0]}, {folders[1]}): give the one that is meant"
            )
    return found


def _inside(folder: Folder, may_enter: Callable[[str], bool]) -> Folder:
    """Go down through folders that hold one folder of folders and nothing else, such as data/train/."""
    while not folder.images and len(folder.folders) == 1:
        (name, inner), *_ = folder.folders.items()
        if not inner.folders or not may_enter(name):
            break
        folder = inner
    return folder


def _relative(files: list[Path], root: Path) -> list[str]:
    return [str(file.relative_to(root)) for file in files]


def check_class_name(name: str, what: str) -> None:
    """Raise `UserError` for a name of a class that is empty or can't be printed; `what` says whose name it is."""
    if not name.strip() or any(unicodedata.category(letter) in UNPRINTABLE for letter in name):
        raise UserError(f"{what} is empty or has characters that can't be printed: rename it")


def _classes(split: Folder, root: Path, skipped: Skipped) -> dict[str, list[Path]]:
    """Images by class. Names are put into Unicode's composed form: macOS writes é as e and an accent."""
    skipped["images outside of class folders"] += _relative(split.images, root)
    classes: dict[str, list[Path]] = {}
    for folder in split.folders.values():
        if folder.folders:
            inner = next(iter(folder.folders.values()))
            raise UserError(
                f"{inner.path} holds images below the class folder {folder.path}: put images directly into their class "
                f"folders ({LAYOUT}), or give the folder above the classes as data.path"
            )
        name = unicodedata.normalize("NFC", folder.path.name)
        check_class_name(name, f"the class folder {str(folder.path)!r}")
        if name in classes:
            raise UserError(f"{folder.path.parent} has two folders that read {name}: rename one")
        classes[name] = folder.images
    return classes
