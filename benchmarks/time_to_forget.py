"""How long does every method take until the class is forgotten and the others are unharmed?

Fits every method with its defaults until ua_noise_aware ≥ 0.99 and fid_retain/classifier ≤ the original's + 0.5 on the
quick plan, which is scored every few steps. Other settings: experiment=digits_methods with 16 + 16 images a step
instead of 32 + 32, 10 sampler steps instead of 25 (also for replay), no second classifier, and one thread (its gain:
`python -m benchmarks.levers`).

Prints steps, seconds and forward units (FLOPs / FLOPs of one pass of the network over a batch), those of the
preparation apart, without scoring. A run that does not reach the bounds counts with all steps. Fits run one after the
other; a spread needs more digits or seeds: `python -m benchmarks.time_to_forget digits=[3,8] seeds=[0,1,2]`. The floor
is the FLOPs at the rate of the fastest matrix product. Takes three minutes on two cores, more with an empty cache.
"""

from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import command
from benchmarks.methods import METHODS
from benchmarks.setting import Training, digits_data, silent_fit
from benchmarks.tables import FOLDER, publish
from benchmarks.timing import default_device, matmul_flops, ratio, spread
from safemax_pl.config.build import build
from safemax_pl.config.compose import compose

BOUNDS = {"ua_noise_aware": 0.99, "delta/fid_retain/classifier": 0.5}
REFERENCE = "safemax"
SETTINGS = ("experiment=digits_methods", "second_classifier=null", "sampler.steps=10", "evaluation.final=quick")


def main(
    methods: tuple[str, ...] = METHODS,
    digits: tuple[int, ...] = (3,),
    seeds: tuple[int, ...] = (0,),
    batch: int = 16,
    steps: int = 100,
    every: int = 10,
    folder: str = FOLDER,
) -> Path:
    """Fit for at most `steps` steps of `batch` forget and `batch` retain images, and score every `every` steps."""
    torch.set_num_threads(1)
    device, runs = default_device(), dict[str, list[dict[str, Any]]]()
    ceiling, unit = matmul_flops(device), Training.of(digits_data(), device, "data=digits").pass_flops(2 * batch)
    bounds = ", ".join(f"{name}: {bound}" for name, bound in BOUNDS.items())
    common = [*SETTINGS, f"trainer.max_steps={steps}", f"trainer.val_check_interval={every}", f"stop_when={{{bounds}}}"]
    common += [f"data.{part}_batch_size={batch}" for part in ("forget", "retain")]
    settings = {
        (method, digit, seed): [*common, f"unlearner={method}", f"data.forget_classes=[{digit}]", f"seed={seed}"]
        for seed, digit, method in product(seeds, digits, methods)
    }
    for overrides in settings.values():  # checks all before the first one runs
        build(compose("fit", overrides).data).setup("fit")
    for (method, _, _), overrides in settings.items():
        runs.setdefault(method, []).append(silent_fit(overrides))
    seconds = {method: [run["cost"]["unlearn_seconds"] for run in found] for method, found in runs.items()}
    title = f"Until {bounds}; digits {list(digits)}, seeds {list(seeds)}, {batch} + {batch} images, "
    title += f"at most {steps} steps, scored every {every}"
    rows = table(runs, seconds, ceiling, unit)
    return publish("time_to_forget", title, rows, {"digits": seconds}, folder, matmul_flops=ceiling, unit_flops=unit)


def table(
    runs: dict[str, list[dict[str, Any]]], seconds: dict[str, list[float]], ceiling: float, unit: float
) -> list[dict[str, Any]]:
    """Return a row for every method.

    Args:
        runs: method -> metrics of its runs.
        seconds: method -> seconds of its fits.
        ceiling: FLOP/s of the fastest matrix product.
        unit: FLOPs of one pass over a batch.
    """
    rows = []
    for method, found in runs.items():
        row: dict[str, Any] = {"method": method, "runs that got there": f"{sum(map(got_there, found))} of {len(found)}"}
        row["steps"] = spread([run["training"]["steps"] for run in found])
        row["fit, s"] = spread(seconds[method])
        if REFERENCE in seconds:
            row[f"/ {REFERENCE}"] = ratio(seconds[method], seconds[REFERENCE])
        flops = [run["cost"]["unlearn_flops"] for run in found]
        row["forward units"] = spread([count / unit for count in flops])
        row["before the fit, s"] = spread([run["cost"]["preparation_seconds"] for run in found])
        row["before the fit, forward units"] = spread([run["cost"]["preparation_flops"] / unit for run in found])
        row["share of floor"] = sum(flops) / ceiling / sum(seconds[method])
        scores = [run["scores"]["w=0"] for run in found]
        row["ua_noise_aware"] = spread([models["unlearned"]["ua_noise_aware"] for models in scores])
        row["Δ fid_retain/classifier"] = spread([delta(models, "fid_retain/classifier") for models in scores])
        rows.append(row)
    return rows


def got_there(run: dict[str, Any]) -> bool:
    return run["training"]["stopped_by"] is not None


def delta(models: dict[str, dict[str, float]], metric: str) -> float:
    """Return the difference of the unlearned model to the original."""
    return models["unlearned"][metric] - models["original"][metric]


if __name__ == "__main__":
    command(main)
