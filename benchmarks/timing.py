"""What all benchmarks share: sides timed in turn, ceilings of the hardware as measured, tables, JSON files.

A benchmark calls `compare` for its sides and `publish` for its rows:

    timed = compare({"ours": ours, "bare": bare}, repeats=9)
    timed.ratios["bare"]    # of the seconds of bare to those of ours, repeat by repeat: median and quartiles
    publish("overhead", "Training step", [{"batch": 64, "bare / ours": timed.ratios["bare"]}], {"64": timed.seconds})
"""

import inspect
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import numpy as np
import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from safemax_pl.runs.provenance import provenance

from safemax_pl.common.errors import UserError, clear_errors, unknown
from safemax_pl.common.files import write_json
from safemax_pl.common.hardware import flop_counter, hardware
from safemax_pl.config.command_line import quiet

FOLDER = "runs/benchmarks"
Side = Callable[[], Any]


class Spread(NamedTuple):
    """Median and quartiles of repeats."""

    median: float
    low: float
    high: float


def spread(values: list[float]) -> Spread:
    """Median and quartiles of at least one value."""
    return Spread(*(float(np.quantile(values, q)) for q in (0.5, 0.25, 0.75)))


def ratio(values: list[float], others: list[float]) -> Spread:
    """Of values to others, each pair of the same repeat: what slows the machine for a while slows both."""
    return spread([a / b for a, b in zip(values, others, strict=True)])


@dataclass(frozen=True)
class Comparison:
    """Seconds of every repeat of every side; the first side is what the others are compared with."""

    seconds: dict[str, list[float]]

    @property
    def medians(self) -> dict[str, float]:
        return {side: spread(values).median for side, values in self.seconds.items()}

    @property
    def ratios(self) -> dict[str, Spread]:
        """Of every side to the first."""
        first = next(iter(self.seconds.values()))
        return {side: ratio(values, first) for side, values in self.seconds.items()}


def compare(sides: dict[str, Side], repeats: int, warmup: int = 1) -> Comparison:
    """Time the sides in turn, each repeat beginning with another one, after `warmup` calls that are not timed."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    names = list(sides)
    for repeat in range(-warmup, repeats):
        for place in range(len(names)):
            side = names[(repeat + place) % len(names)]
            elapsed = stopwatch(sides[side])
            if repeat >= 0:
                seconds[side].append(elapsed)
    return Comparison(seconds)


def stopwatch(call: Side) -> float:
    """Seconds of one call, the accelerator synchronised at both ends."""
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def flops(call: Side) -> int:
    """Floating-point operations of one call, forward and backward, as `safemax_pl.common.hardware` counts them."""
    with flop_counter() as counted:
        call()
    return counted.get_total_flops()


def matmul_flops(device: torch.device, dtype: torch.dtype = torch.float32, repeats: int = 5) -> float:
    """FLOPs per second of the fastest matrix product: the ceiling of what a network can reach.

    On CUDA float32 means TF32, which cuDNN's convolutions use by default.
    """
    rates, precision = [], torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    for size in (512, 1024, 2048) if device.type == "cpu" else (2048, 4096, 8192):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        rates += [2 * size**3 / stopwatch(lambda a=a, b=b: a @ b) for _ in range(1 + repeats)]  # type: ignore[misc]
    torch.set_float32_matmul_precision(precision)
    return max(rates)


def memory_bandwidth(device: torch.device, size: int, repeats: int = 5) -> float:
    """Bytes per second, those read and those written, of copies of `size` bytes: small ones stay in a cache."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target, copies = torch.empty_like(source), min(1000, -(-(2**28) // size))

    def copy() -> None:
        for _ in range(copies):
            target.copy_(source)

    return max(2 * size * copies / stopwatch(copy) for _ in range(1 + repeats))


def step_floor(flops: float, parameters: int, ceiling: float, bandwidth: float) -> float:
    """Seconds below which no step gets: its FLOPs, or Adam's reading p, g, m, v and writing p, m, v in float32.

    Args:
        flops: of the step.
        parameters: how many weights are trained.
        ceiling: `matmul_flops`.
        bandwidth: `memory_bandwidth` of buffers as large as the weights.
    """
    return max(flops / ceiling, 7 * 4 * parameters / bandwidth)


def show(value: Any) -> str:
    """A cell: at least three digits of a number, `median [quartiles]` of a spread, if they differ."""
    if isinstance(value, list | tuple):
        median, low, high = map(show, value)
        return median if low == high else f"{median} [{low}, {high}]"
    return f"{value:.{4 if abs(value) >= 1000 else 3}g}" if isinstance(value, float) else str(value)


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """One line per row, one column per key of any row."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    for row in rows:
        table.add_row(*(show(row.get(column, "")) for column in columns))
    console = Console()
    console.width = max(console.width, Console(width=1000).measure(table).maximum)  # long lines, but no cut numbers
    console.print(table)


def publish(
    name: str,
    title: str,
    rows: list[dict[str, Any]],
    seconds: dict[str, dict[str, list[float]]],
    folder: str | Path = FOLDER,
    more: dict[str, list[dict[str, Any]]] | None = None,
    **facts: Any,
) -> Path:
    """Print the tables and write them as `<folder>/<name>.json`, with all raw seconds and what they were taken on.

    Args:
        name: of the script.
        title: of the table; says what is compared, and the number of repeats.
        rows: of the table: column -> value, a number, a `Spread` or text.
        seconds: case -> side -> seconds of every repeat.
        more: title -> rows of further tables.
        facts: more for the file: ceilings, floors, settings.
    """
    made_on = {
        "date": date.today().isoformat(),
        "hardware": hardware(default_device()),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "commit": provenance()["commit"],
        "repeats": max((len(values) for sides in seconds.values() for values in sides.values()), default=0),
    }
    tables = {title: rows, **(more or {})}
    for heading, lines in tables.items():
        print_table(heading, lines)
    path = Path(folder) / f"{name}.json"
    write_json(path, {"name": name, **made_on, **facts, "tables": tables, "seconds": seconds})
    return path


def command(main: Callable[..., Any]) -> None:
    """Run `main(option=value, ...)` with the options of the command line; `--help` prints docstrings and defaults."""
    legal = inspect.signature(main).parameters
    if {"-h", "--help"} & set(sys.argv[1:]):
        defaults = (f"  {name}={typed(option.default)}" for name, option in legal.items())
        print(inspect.getmodule(main).__doc__, "\nOptions and their defaults:", *defaults, "", main.__doc__, sep="\n")
        return
    quiet()
    with clear_errors():
        options: Any = OmegaConf.to_container(OmegaConf.from_dotlist(sys.argv[1:]))
        for name, value in options.items():
            if name not in legal:
                raise unknown("option", str(name), legal)
            if not is_legal(value, legal[name].annotation):
                raise UserError(f"{name}={typed(value)}: expected something like {name}={typed(legal[name].default)}")
        try:
            main(**options)
        except KeyboardInterrupt:
            print("interrupted: a benchmark keeps nothing until it ends", file=sys.stderr)
            sys.exit(130)


def typed(value: Any) -> str:
    """A value as one types it: `[[digits,8,10]]`."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}: {typed(inner)}" for key, inner in value.items()) + "}"
    return f"[{','.join(map(typed, value))}]" if isinstance(value, list | tuple) else str(value).lower()


def is_legal(value: Any, kind: Any, least: int = 1) -> bool:
    """Whether a value is what an option's annotation says: integers of at least `least`, inside lists 0; none empty."""
    inner = get_args(kind)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and bool(value) and all(is_legal(each, inner[1], 0) for each in value.values())
    if get_origin(kind) is tuple:
        if not isinstance(value, list) or not value:
            return False
        kinds = [inner[0]] * len(value) if inner[-1] is ... else inner
        return len(value) == len(kinds) and all(is_legal(*pair, 0) for pair in zip(value, kinds, strict=True))
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, str)
