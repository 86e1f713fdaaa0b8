"""How do time, memory and FLOPs of a SAFEMax step grow with the batch, the images, the classes and the network?

Varies one setting at a time on random grey images and small networks (two resolutions, attention at the lower one).
Prints for every setting:
  the slope of each quantity in a log-log plot, with its standard error (1: proportional, 0: constant);
  the ratio of times at the largest and the smallest value;
  two constants: outermost calls of torch's operators per step, views included, and, on the CPU, the seconds of a
    profiled step outside of operators (Python, autograd and the optimiser's loop);
  the share of the floor at the largest value: FLOPs at the rate of the fastest matrix product.
Draws growth.png. Takes a minute on two cores.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from torch.autograd.profiler import profile

from benchmarks.command import command
from benchmarks.setting import Training, random_data
from benchmarks.tables import FOLDER, publish
from benchmarks.timing import compare, default_device, matmul_flops, spread, stopwatch
from safemax_pl.common.errors import UserError, unknown
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose
from safemax_pl.reports import charts
from safemax_pl.unlearners.base import Unlearner

BASE = {"batch": 8, "size": 8, "forget": 1, "retain": 9, "width": 32}
SWEEPS: dict[str, tuple[int, ...]] = {
    "batch": (4, 16, 64, 128),
    "size": (8, 16, 32),
    "forget": (1, 5, 25),
    "retain": (1, 5, 25),
    "width": (16, 32, 64, 128),
}
NAMES = {"batch": "images of each kind", "size": "pixels of a side", "forget": "forget classes"}
NAMES |= {"retain": "retain classes", "width": "channels, and half the lower resolution's"}
QUANTITIES = {"seconds": "time", "flops": "FLOPs", "peak_bytes": "peak memory"}
if default_device().type == "cpu":  # on a GPU, the host does not wait for the operators
    QUANTITIES["outside"] = "time outside of operators"


def main(
    sweeps: dict[str, tuple[int, ...]] = SWEEPS, repeats: int = 5, profiled: int = 2, folder: str = FOLDER
) -> Path:
    """Time every value of each sweep, at least three, `repeats` times in turn, and profile `profiled` steps of it."""
    for key, values in sweeps.items():
        if key not in SWEEPS:
            raise unknown("sweep", key, SWEEPS)
        if len(values) < 3:
            raise UserError(f"sweeps.{key}={list(values)}: a slope with its error needs at least three values")
    ceiling = matmul_flops(default_device())
    points = {key: [measured(BASE | {key: value}, profiled) for value in values] for key, values in sweeps.items()}
    seconds, rows = dict[str, dict[str, list[float]]](), list[dict[str, Any]]()
    for sweep, values in sweeps.items():
        steps = [point.pop("step") for point in points[sweep]]
        timed = compare(dict(zip(map(str, values), steps, strict=True)), repeats)
        seconds[sweep] = timed.seconds
        for point, found in zip(points[sweep], timed.seconds.values(), strict=True):
            point["seconds"] = found
        last = points[sweep][-1]
        row: dict[str, Any] = {"varied": NAMES[sweep], "from, to": f"{values[0]}, {values[-1]}"}
        row["time, last / first"] = timed.ratios[str(values[-1])]
        for key, name in QUANTITIES.items():
            medians = [float(np.median(point[key])) for point in points[sweep]]
            (slope, _), covariance = np.polyfit(np.log(values), np.log(medians), 1, cov=True)
            constant = len(set(medians)) == 1
            row[f"slope of {name}"] = "0 exactly" if constant else f"{slope:.2f} ± {covariance[0, 0] ** 0.5:.2f}"
        calls = [point["calls"] for point in points[sweep]]
        row["calls of operators"] = str(calls[0]) if len(set(calls)) == 1 else f"{min(calls)} to {max(calls)}"
        if "outside" in QUANTITIES:
            outside = [1e3 * value for point in points[sweep] for value in point["outside"]]
            row["outside of operators, ms"] = spread(outside)
        rows.append(row | {"share of floor": last["flops"] / ceiling / float(np.median(last["seconds"]))})
    draw(Path(folder) / "growth.png", sweeps, points, repeats)
    fixed = ", ".join(f"{key} {value}" for key, value in BASE.items())
    title = f"Growth of a SAFEMax step, {repeats} repeats; otherwise {fixed}"
    return publish("growth", title, rows, seconds, folder, matmul_flops=ceiling, points=points)


def measured(setting: dict[str, int], profiled: int) -> dict[str, Any]:
    """Return a step to be timed, and everything else about it."""
    device, size, width = default_device(), setting["size"], setting["width"]
    classes = setting["forget"] + setting["retain"]
    data = random_data((1, size, size), classes, range(setting["forget"]), setting["batch"], device, per_class=20)
    network = [
        f"model.channels=[{width},{2 * width}]",
        f"model.head_dim={2 * width}",
        f"model.attention_at=[{size // 2}]",
    ]
    training = Training.of(data, device, "model=unet_digits", *network)
    unlearner: Unlearner = build(compose("fit", ["unlearner=safemax"]).unlearner)
    step = partial(training.step, unlearner)
    step()  # creates the optimiser's state
    account = training.account(unlearner)
    calls, outside = zip(*(look_inside(step) for _ in range(profiled)), strict=True)
    return {"step": step, "calls": calls[-1], "outside": outside, **account._asdict()}


def look_inside(step: Any) -> tuple[int, float]:
    """Return the number of outermost operators of a step, and the host's seconds outside of them."""
    with profile(use_kineto=False) as profiler:
        elapsed = stopwatch(step)
    assert profiler.function_events is not None
    operators = [event for event in profiler.function_events if event.name.startswith("aten::")]
    outer = [one for one in operators if one.cpu_parent is None or not one.cpu_parent.name.startswith("aten::")]
    return len(outer), elapsed - sum(one.cpu_time_total for one in outer) / 1e6


def draw(path: Path, sweeps: dict[str, tuple[int, ...]], points: dict[str, list[dict[str, Any]]], repeats: int) -> None:
    """Draw one panel for each sweep: every quantity, relative to its value at the smallest setting."""
    figure, axes = plt.subplots(2, 3, figsize=(3 * charts.WIDTH, 2 * charts.HEIGHT), layout="constrained")
    for axis, (sweep, values) in zip(axes.flat, sweeps.items(), strict=False):
        for place, (key, name) in enumerate(QUANTITIES.items()):
            found = [np.quantile(point[key], (0.25, 0.5, 0.75)) for point in points[sweep]]
            low, median, high = np.array(found).T / found[0][1]
            axis.errorbar(
                values, median, (median - low, high - median), label=name, ms=5, capsize=2, **charts.style(place)
            )
        axis.set(xlabel=NAMES[sweep], ylabel="multiple of the first")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        low, high = axis.get_ylim()
        axis.set_ylim(min(low, 0.5), max(high, 2))  # so that a constant looks constant
        axis.set_xticks(values, map(str, values))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.25)
    for axis in list(axes.flat)[len(sweeps) :]:
        axis.axis("off")
    axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels(), loc="center", frameon=False)
    charts.save(figure, path, "Growth of a step", f"Medians and quartiles of {repeats} repeats.")


if __name__ == "__main__":
    command(main)
