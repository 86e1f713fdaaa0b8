"""Run all benchmarks, and print and write their tables: runs/benchmarks/tables.md.

`make bench`, or `python -m benchmarks`; `python -m benchmarks scripts=[overhead,sampling]` runs some. If a script
fails, the others still run, and the exit code is 1. Takes a quarter of an hour on two idle cores.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.command import command
from benchmarks.tables import FOLDER, print_table, show
from safemax_pl.common.console import markdown_table
from safemax_pl.common.errors import unknown
from safemax_pl.common.files import atomic

SCRIPTS = (
    "startup",
    "overhead",
    "methods",
    "launches",
    "time_to_forget",
    "sampling",
    "data_path",
    "evaluation",
    "growth",
    "levers",
    "ranks",
)


def main(scripts: tuple[str, ...] = SCRIPTS, folder: str = FOLDER) -> None:
    """Run the scripts with their defaults, each in a process of its own."""
    for name in scripts:
        if name not in SCRIPTS:
            raise unknown("script", name, SCRIPTS)
    results, failed = list[dict[str, Any]](), list[str]()
    for name in scripts:
        path = Path(folder) / f"{name}.json"
        path.unlink(missing_ok=True)
        start = time.perf_counter()
        process = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", f"folder={folder}"], check=False)
        print(f"{name}: {time.perf_counter() - start:.0f} s\n", flush=True)
        if process.returncode or not path.exists():
            failed.append(name)
        else:
            results.append(json.loads(path.read_text()))
    for result in results:
        for title, rows in result["tables"].items():
            print_table(title, rows)
    with atomic(Path(folder) / "tables.md") as part:
        part.write_text("\n".join(markdown(result) for result in results))
    print(f"written: {folder}/tables.md")
    if failed:
        print(f"error: failed: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


def markdown(result: dict[str, Any]) -> str:
    """Return the tables of one script below its hardware, versions and date."""
    made_on = f"{result['hardware']}, torch {result['torch']}, commit {result['commit']}, {result['date']}"
    repeated = f", n = {result['repeats']}, median [quartiles]" if result["repeats"] else ""
    lines = [f"## {result['name']}", "", f"{made_on}{repeated}.", ""]
    for title, rows in result["tables"].items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        cells = [[show(row.get(column, "")) for column in columns] for row in rows]
        lines += [f"**{title}**", "", markdown_table([columns, *cells], left=1), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    command(main)
