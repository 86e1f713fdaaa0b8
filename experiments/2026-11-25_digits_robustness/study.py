"""The commands of this study: `study.py fit` prints them, `attack` attacks every run, `figure` draws; run.sh does all.

Methods: those of 2026-11-23_digits_methods at the settings that were tuned there on another digit. All are attacked
with the same budget, smaller than the default of configs/attack so that 51 runs take an hour.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt

from safemax_pl.attacks.attack import attack
from safemax_pl.config.command_line import quiet

RUNS = "runs/digits_robustness"
FIT = f"python -m safemax_pl.fit experiment=digits_methods logger=csv trainer.enable_progress_bar=false runs_dir={RUNS}"
STUDY = "data.forget_classes=[3] -m seed=0,1,2"
RETRAIN = "unlearner=retrain data.retain_batch_size=64 optimizer.lr=1e-3 trainer.max_steps=2000"
SMALL = {
    "selective_amnesia": "unlearner.replay_per_class=50 unlearner.fisher_images=50",
    "esd": "unlearner.replay_per_class=50",
}
ON_FROZEN_WEIGHTS = ("sampler_transfer", "late_start", "embedding_interpolation", "embedding_inversion")
BUDGET = [
    "attack=all",
    "trainer.enable_progress_bar=false",
    "sampler=dpm_solver",
    "sampler.steps=10",
    "attacks.sampler_transfer.samplers=[{name: ddim, steps: [20, 50]}, {name: ddpm, steps: [100]}, "
    "{name: dpm_solver, spacing: trailing, steps: [10]}]",
    "attacks.sampler_transfer.guidance_weights=[0, 2]",
    "attacks.null_leak.guidance_weights=[-1, -0.5, 0]",
    "attacks.embedding_inversion.images=[10]",
    "attacks.embedding_inversion.budget.batch_size=16",
    "attacks.embedding_interpolation.starts=2",
    "attacks.embedding_interpolation.weights=[0, 0.5, 0.8, 1, 1.2]",
    "attacks.relearning.images=[10, null]",
    "attacks.relearning.budget.batch_size=16",
    "attacks.relearning_without_class.budget.batch_size=16",
]


def fit() -> list[str]:
    """One line per method: the best of its six trials, as 2026-11-23_digits_methods chose it."""
    with (Path(__file__).parents[1] / "2026-11-23_digits_methods" / "tuning.csv").open() as file:
        trials = list(csv.DictReader(file))
    lines = [f"{FIT} {RETRAIN} {STUDY}"]
    for method in sorted({trial["method"] for trial in trials}):
        mine = [trial for trial in trials if trial["method"] == method]
        best = min(
            mine, key=lambda trial: (-min(float(trial["ua_noise_aware"]), 0.99), float(trial["fid_retain/classifier"]))
        )
        settings = f"optimizer.lr={float(best['lr']):g} {best['knob']}={float(best['value']):g}"
        lines.append(f"{FIT} unlearner={method} {settings} {SMALL.get(method, '')} {STUDY}")
    return lines


def attack_all() -> None:
    """Attack every finished run, next to the Retrain of seed 0; finished curves are taken from the cache."""
    quiet()
    runs = [path.parent for path in sorted(Path(RUNS).glob("*/metrics.json"))]
    (retrain,) = [run for run in runs if "unlearner_retrain" in run.name and "seed_0" in run.name]
    for run in runs:
        attack(str(run), [*BUDGET, *([] if "unlearner_retrain" in run.name else [f"retrain={retrain}"])])


def figure() -> None:
    """Steps to relearn against the harm done, and the lowest `ua_noise_aware` of the attacks on frozen weights."""
    here = Path(__file__).parent
    numbers: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with (here / "robustness.csv").open() as file:
        for row in csv.DictReader(file):
            if row["model"] == "unlearned":
                numbers[row["method"]][row["attack"]].append(float(row["value"]))
    with (here / "results.csv").open() as file:
        for row in csv.DictReader(file):
            numbers[row["method"]]["harm"].append(float(row["delta/fid_retain/classifier"]))
            numbers[row["method"]]["asked"].append(float(row["ua_noise_aware"]))
    mean = {method: {name: sum(v) / len(v) for name, v in by.items()} for method, by in numbers.items()}
    plt.style.use("default")
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for method, by in mean.items():
        if "harm" not in by:
            continue
        for axis, y in ((left, by["relearning"]), (right, min(by[name] for name in ON_FROZEN_WEIGHTS))):
            reference = method == "retrain"
            colour = (
                "black"
                if reference
                else "C3"
                if method.startswith("safemax")
                else "C0"
                if by["asked"] >= 0.9
                else "0.7"
            )
            axis.plot(max(by["harm"], 0.01), y, "D" if reference else "o", color=colour, ms=7)
            axis.annotate(method, (max(by["harm"], 0.01), y), (6, 3), textcoords="offset points", fontsize=8)
    left.set(
        yscale="symlog", ylabel="steps to relearn from ten images (log from 1)", title="hidden below, erased above"
    )
    right.set(
        ylabel="lowest ua_noise_aware of four attacks on frozen weights",
        title="other samplers, other embeddings",
        ylim=(-0.05, 1.05),
    )
    for axis in (left, right):
        axis.set(xscale="log", xlabel="Δ fid_retain/classifier: harm to the other classes (left edge: 0.01 or less)")
        axis.grid(alpha=0.3)
        axis.axhline(
            mean["retrain"]["relearning"] if axis is left else min(mean["retrain"][n] for n in ON_FROZEN_WEIGHTS),
            ls=":",
            color="black",
        )
    fig.savefig(here / "figure.png", dpi=110)


if __name__ == "__main__":
    if sys.argv[1] == "attack":
        attack_all()
    elif sys.argv[1] == "figure":
        figure()
    else:
        print("\n".join(fit()))
