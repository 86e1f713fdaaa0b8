"""Tree of all images and parquet files in a folder.

`datasets`' imagefolder is not used: its `data_files` are patterns, in which `[`, `*` and `{` are operators, and it
takes the nearest folder as the class, also if that is a split or a superclass.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from safemax_pl.common import distributed
from safemax_pl.common.errors import UserError
from safemax_pl.common.escaping import printable
from safemax_pl.data.decoding import ENDINGS
from safemax_pl.data.encoded import Skipped

# Folders of macOS, Windows, Python, file systems and network disks; also hidden: names that begin with a dot
HIDDEN = {"__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"}
MAX_VISITS = 16  # of one folder through different links
SAY_AFTER = 10_000  # files and folders left out, after which the search says what it is doing


@dataclass
class Folder:
    """A folder and its descendants, without folders that hold no images and tables.

    Attributes:
        path: from the root, through links.
        images: image files in the folder.
        tables: parquet files in the folder.
        folders: subfolders, by name.
    """

    path: Path
    images: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    folders: dict[str, "Folder"] = field(default_factory=dict)

    def files(self) -> list[Path]:
        """Return all images and tables of the folder and its descendants, ordered by path."""
        below = [file for folder in self.folders.values() for file in folder.files()]
        return sorted([*self.images, *self.tables, *below], key=str)


def walk(root: Path) -> tuple[Folder, Skipped]:
    """Find all images and parquet files below `root`, through links.

    Returns:
        The tree, and the paths left out, by reason.

    Raises:
        UserError: for a broken link, which may be a missing class; for unreadable folders; for links that lead to one
            folder more than `MAX_VISITS` times.
    """
    search = _Search(root)
    try:
        return search.visit(root, ()), search.skipped
    except (OSError, RecursionError) as error:
        raise UserError(f"data.path {root} can't be read ({error}): make its files and folders readable") from error


class _Search:
    """State of `walk`."""

    def __init__(self, root: Path):
        self.root = root
        self.skipped: Skipped = defaultdict(list)
        self.visits: Counter[Path] = Counter()
        self.left_out = 0

    def visit(self, path: Path, above: tuple[Path, ...]) -> Folder:
        """Read a folder. `above` are the resolved paths of the folders that contain it."""
        folder, real = Folder(path), path.resolve()
        self.visits[real] += 1
        if self.visits[real] > MAX_VISITS:
            raise UserError(f"links in {self.root} lead to {real} more than {MAX_VISITS} times: remove some")
        for entry in sorted(path.iterdir()):
            if entry.name.startswith(".") or entry.name.casefold() in HIDDEN:
                self.skip("hidden", entry)
            elif entry.is_dir():
                self.add_folder(folder, entry, (*above, real))
            elif entry.is_file():
                self.add_file(folder, entry)
            elif entry.is_symlink():
                raise UserError(f"{entry} is a link to nothing: repair or remove it")
            else:
                self.skip("neither files nor folders", entry)
        return folder

    def add_folder(self, folder: Folder, entry: Path, above: tuple[Path, ...]) -> None:
        if entry.resolve() in above:
            self.skip("links to a folder above them", entry)
            return
        inner = self.visit(entry, above)
        if inner.images or inner.tables or inner.folders:
            folder.folders[entry.name] = inner
        else:
            self.skip("folders without images", entry)

    def add_file(self, folder: Folder, entry: Path) -> None:
        ending = entry.suffix.lower()
        if ending in ENDINGS:
            folder.images.append(entry)
        elif ending == ".parquet":
            folder.tables.append(entry)
        else:
            self.skip(f"files that end in {ending}, which are not read" if ending else "files without ending", entry)

    def skip(self, reason: str, path: Path) -> None:
        self.skipped[reason].append(str(path.relative_to(self.root)))
        self.left_out += 1
        if self.left_out == SAY_AFTER and distributed.is_first():
            print(
                f"still searching {printable(self.root)}: {SAY_AFTER} entries without images so far; if the folder "
                "holds other files too, press Ctrl-C and set data.path to the folder of the images"
            )
