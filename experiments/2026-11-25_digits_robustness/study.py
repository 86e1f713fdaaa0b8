"""The commands of this study: `study.py fit` prints them, `attack` attacks every run, `figure` draws; run.sh does all.

Methods: those of 2026-11-28_digits_methods at the settings that were tuned there on another digit. All are attacked
with the same budget, smaller than the default of configs/attack so that 51 runs take an hour.
"""

import sys
from pathlib import Path

import pandas as pd

from safemax_pl.attacks.attack import attack
from safemax_pl.common.figures import COLOURS, GREY, HEIGHT, PALE, WIDTH, handle, legend, name_axes, panels, save_figure
from safemax_pl.common.point_labels import label_points
from safemax_pl.config.command_line import import_lightning, quiet
from safemax_pl.config.groups import options
from safemax_pl.reports.figures.trade_offs import REFERENCE

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
    """One line per method, at the settings that 2026-11-28_digits_methods tuned."""
    tuned = [f"{FIT} unlearner={one} setting=tuned {SMALL.get(one, '')} {STUDY}" for one in options("setting/tuned")]
    return [f"{FIT} {RETRAIN} {STUDY}", *tuned]


def attack_all() -> None:
    """Attack every finished run, next to the Retrain of seed 0; finished curves are taken from the cache."""
    quiet()
    import_lightning()
    runs = [path.parent for path in sorted(Path(RUNS).glob("*/metrics.json"))]
    (retrain,) = [run for run in runs if "unlearner_retrain" in run.name and "seed_0" in run.name]
    for run in runs:
        attack(str(run), [*BUDGET, *([] if "unlearner_retrain" in run.name else [f"retrain={retrain}"])])


def figure() -> None:
    """Draw steps to relearn, and the lowest `ua_noise_aware` of attacks on frozen weights, against the harm done."""
    here = Path(__file__).parent
    attacks = pd.read_csv(here / "robustness.csv").query("model == 'unlearned'")
    methods = attacks.pivot_table("value", "method", "attack")
    scores = pd.read_csv(here / "results.csv").groupby("method")
    methods["harm"] = scores["delta/fid_retain/classifier"].mean().clip(lower=0.01)
    methods["forgot"] = scores["ua_noise_aware"].mean() >= 0.9
    methods["lowest"] = methods[list(ON_FROZEN_WEIGHTS)].min(axis=1)
    figure, axes = panels(2, 2.9 * WIDTH, 1.5 * HEIGHT, columns=2)
    labels = {
        "relearning": "steps to relearn (higher is better)",
        "lowest": "lowest ua_noise_aware (higher is better)",
    }
    for axis, key in zip(axes, labels, strict=True):
        for method, row in methods.iterrows():
            colour = COLOURS[1] if method.startswith("safemax") else COLOURS[0] if row["forgot"] else PALE
            look = REFERENCE | {"ms": 13} if method == "retrain" else {"color": colour, "marker": "o", "ms": 7}
            axis.plot(row["harm"], row[key], **look)
        axis.axhline(methods.loc["retrain", key], ls=":", color=GREY)
        axis.set_xscale("log")
        titles = {"relearning": "relearning from ten images", "lowest": "four attacks on frozen weights"}
        name_axes(axis, "Δ fid_retain/classifier (lower is better; 0.01: at most 0.01)", labels[key], titles[key])
    axes[0].set_yscale("symlog")
    axes[0].set_ylim(-0.3, 200)
    axes[1].set_ylim(-0.05, 1.05)
    kinds = {"SAFEMax": COLOURS[1], "other methods that forgot": COLOURS[0], "methods that did not forget": PALE}
    marks = [handle(kind, color=colour, marker="o", ls="") for kind, colour in kinds.items()]
    legend(figure, [*marks, handle("retrained without the class", **REFERENCE, ms=10, ls=":")])
    for axis, key in zip(axes, labels, strict=True):
        label_points(figure, axis, [(method, row["harm"], row[key]) for method, row in methods.iterrows()])
    save_figure(figure, here / "figure.png")


if __name__ == "__main__":
    if sys.argv[1] == "attack":
        attack_all()
    elif sys.argv[1] == "figure":
        figure()
    else:
        print("\n".join(fit()))
