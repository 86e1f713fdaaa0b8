"""Make .gpu/, what a GPU machine without a network lacks, and print the calls to make on it.

  PYTHONPATH=. python experiments/cifar/deliver.py FOLDER     with CIFAR-10 as parquet files

A call takes at most 64 MiB along: the files of the checkout that git does not ignore, and the ignored folders that it
carries. .gpu/whl has the wheels. The data are one tar file, cut into pieces that fill the calls: .gpu/a, .gpu/b, ...
"""

import subprocess
import sys
import tarfile
from pathlib import Path
from shutil import rmtree

from safemax_pl.common.errors import UserError, clear_errors
from safemax_pl.runs.provenance import provenance

DELIVERY = Path(".gpu")
LIMIT = 63 * 2**20  # bytes of a call: a MiB less than is allowed, for names and formats
MISSING = ["diffusers", "importlib_metadata", "zipp", "hydra-core", "omegaconf", "datasets"]
MISSING += ["multiprocess<0.70.20", "dill<0.4.2", "nvidia-ml-py"]  # the newest that datasets takes
SOURCE_ONLY = "antlr4-python3-runtime==4.9.3"  # hydra-core's; there is no wheel of it
UNREAD = ("experiments/20*", "docs", "tests", "weights/digits/without_3", "weights/cifar10*/unet")  # by the study


def fetch_wheels(folder: Path) -> None:
    """Download wheels for Python 3.12 of what a machine with PyTorch and Lightning lacks."""
    pip = [sys.executable, "-m", "pip"]
    where = ["--no-deps", "--only-binary", ":all:", "--python-version", "3.12", "-c", "requirements.txt"]
    try:
        subprocess.run([*pip, "download", "-q", *where, "-d", str(folder), *MISSING], check=True)
        subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", str(folder), SOURCE_ONLY], check=True)
    except subprocess.CalledProcessError as error:
        raise UserError(f"pip got no wheels (status {error.returncode}): make the delivery where it can") from error


def size_of_tree(*patterns: str) -> int:
    """Bytes of the files that git does not ignore, tracked or not; of those that match one of the patterns."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *patterns],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    paths = map(Path, set(listed.stdout.split("\0")) - {""})
    return sum(path.lstat().st_size for path in paths if path.exists() or path.is_symlink())


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def cut(data: Path, rooms: list[int]) -> list[Path]:
    """Write the tar file of the folder `data` into pieces; the last of `rooms` holds for all further ones.

    Raises:
        UserError: when there is no room or there are no data.
    """
    files = sorted(data.glob("*.parquet"))
    if not files:
        raise UserError(f"{data} has no parquet files: give the folder of CIFAR-10 that has them")
    if min(rooms) < 2**20:
        raise UserError(
            f"the checkout has {size_of_tree() / 2**20:.1f} MiB and leaves a call no room for data: take large folders "
            "out of it"
        )
    whole = DELIVERY / "whole.tar"
    with tarfile.open(whole, "w") as tar:
        for file in files:
            tar.add(file, file.name)
    folders = []
    with whole.open("rb") as source:
        for number in range(26):
            if not (piece := source.read(rooms[min(number, len(rooms) - 1)])):
                break
            folders.append(DELIVERY / "abcdefghijklmnopqrstuvwxyz"[number])
            folders[-1].mkdir()
            (folders[-1] / f"data.{number:02d}").write_bytes(piece)
    whole.unlink()
    return folders


def calls(folders: list[Path]) -> list[tuple[str, int, list[str]]]:
    """Command, seconds and carried folders of every call."""
    script, commit = "bash experiments/cifar/gpu.sh", f"SAFEMAX_COMMIT={provenance()['commit']}"
    first, *between, last = map(str, folders if len(folders) > 1 else [*folders, ""])
    return [
        (f"{commit} {script} 1", 300, [f"{DELIVERY}/whl", first]),
        *((f"{script} data", 60, [folder]) for folder in between),
        (f"{commit} LEG=560 {script} 2", 590, [last] if last else []),
    ]


def describe(folders: list[Path]) -> str:
    """The calls, their sizes, and what could stay behind if there are more than two."""
    tree, lines = size_of_tree(), []
    for number, (command, seconds, carried) in enumerate(calls(folders), 1):
        size = tree + sum(size_of(Path(folder)) for folder in carried)
        lines += [f"call {number}: {command}", f"        timeout {seconds} s, carry {' '.join(carried) or 'nothing'}: "
                  f"{size / 2**20:.1f} of 64 MiB"]  # fmt: skip
    lines.append("LEG is 560, or the seconds that are left of the machine less 40, whichever is less.")
    if len(folders) > 2:
        excess = (size_of(DELIVERY) + 2 * tree) / 2 - LIMIT
        lines.append(
            f"Two calls would do if the checkout had {excess / 2**20:.1f} MiB less than its {tree / 2**20:.1f}. The "
            f"study does not read {', '.join(UNREAD)}: {size_of_tree(*UNREAD) / 2**20:.1f} MiB. To leave them behind, "
            "see README.md."
        )
    return "\n".join(lines)


def main() -> None:
    with clear_errors():
        if len(sys.argv) != 2:
            raise UserError(f"got {len(sys.argv) - 1} arguments: give the folder of CIFAR-10")
        rmtree(DELIVERY, ignore_errors=True)
        (DELIVERY / "whl").mkdir(parents=True)
        fetch_wheels(DELIVERY / "whl")
        room = LIMIT - size_of_tree()
        print(describe(cut(Path(sys.argv[1]), [room - size_of(DELIVERY / "whl"), room])))


if __name__ == "__main__":
    main()
