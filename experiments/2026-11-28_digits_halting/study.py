"""Fit SAFEMax with and without rows of the halted path, score all runs under two samplers, attack some.

`study.py fit DIGITS`, `study.py attack DIGITS` and `study.py table`; run.sh does all. Finished work is kept: the same
command resumes.
"""

import csv
import json
import sys
from itertools import product
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt
from scipy.stats import ttest_rel

from safemax_pl.attacks.attack import attack
from safemax_pl.config.command_line import import_lightning, quiet
from safemax_pl.config.compose import compose
from safemax_pl.runs.evaluate import evaluate
from safemax_pl.training.fit import fit

HERE, RUNS = Path(__file__).parent, Path("runs/digits_halting")
FIT = [
    "experiment=digits_forget1",
    "optimizer.lr=2e-4",
    "ema_decay=null",
    "trainer.max_steps=100",
    "trainer.enable_progress_bar=false",
    "trainer.val_check_interval=100",
    "evaluation.guidance=[0,2]",
    "evaluation.plans.quick={forget_per_class: 10, retain_total: 9}",
    "evaluation.plans.standard={forget_per_class: 100, retain_total: 450}",
    "logger=csv",
    f"runs_dir={RUNS}",
]
# arm -> share of the forget rows on the halted path, share of these with the null label, and retain weight
ARMS = {
    "images": (0.0, 0.0, 5.0),
    "path": (0.5, 0.0, 5.0),
    "path_and_null": (0.5, 0.25, 5.0),
    "default": (0.5, 0.5, 10.0),
}
# other samplers, on the forgotten class and a few images of the others
SAMPLERS = {"ddim 100": ("ddim", 100), "ddpm 100": ("ddpm", 100)}
FEW = "evaluation.plans.standard={forget_per_class: 50, retain_total: 9}"
ATTACKS = {
    "relearning": ["images=[10]", "budget.score_at=[0,2,4,6,8,10,15,20,30,50]", "images_per_class=50"],
    "embedding_inversion": ["images=[10]", "budget.score_at=[0,25,50]", "budget.batch_size=16"],
    "late_start": [],
    "null_leak": ["guidance_weights=[-1]", "images_per_class=500"],
}
SCORES = ("ua_noise_aware", "ua", "halting", "noise_std", "noise_saturation", "retain_accuracy")
SCORES += ("fid_retain/classifier", "drift")


def runs(digits: list[int]) -> list[tuple[str, int, int]]:
    """Return (arm, digit, seed) of every run; arms of one digit and seed follow each other, `path` has two runs."""
    found = [(arm, digit, seed) for seed in (0, 1, 2) for digit in digits for arm in ARMS]
    return [run for run in found if run[0] != "path" or run[1:] in ((3, 0), (8, 0))]


def make(arm: str, digit: int, seed: int) -> None:
    """Fit, and score the runs of seed 0 under the other samplers."""
    on_path, null, weight = ARMS[arm]
    settings = [f"unlearner.on_path={on_path}", f"unlearner.null_on_path={null}", f"unlearner.retain_weight={weight}"]
    settings.append("unlearner.null_on_images=0")  # as when the study was made
    folder = fit(
        compose("fit", [*FIT, *settings, f"seed={seed}", f"data.forget_classes=[{digit}]"]), f"{arm}-{digit}-{seed}"
    )
    scored = [json.loads(file.read_text())["protocol"]["sampler"] for file in folder.glob("evaluations/*/metrics.json")]
    left = [one for one in SAMPLERS.values() if one not in [(known["name"], known["steps"]) for known in scored]]
    for name, steps in left if seed == 0 else ():
        evaluate(str(folder), [f"sampler={name}", f"sampler.steps={steps}", FEW])


def attack_run(arm: str, digit: int, seed: int) -> None:
    """Do the attacks that are missing."""
    folder = RUNS / f"{arm}-{digit}-{seed}"
    done = json.loads((folder / "metrics.json").read_text()).get("attacks", {})
    if names := [name for name in ATTACKS if name not in done]:
        budget = [f"attacks.{name}.{setting}" for name in names for setting in ATTACKS[name]]
        attack(str(folder), [f"attack=[{','.join(names)}]", *budget])


def collect() -> pd.DataFrame:
    """Return a row per run, sampler and guidance weight, and write them to results.csv."""
    rows = []
    for path in sorted(RUNS.glob("*-*-*/metrics.json")):
        arm, digit, seed = path.parent.name.split("-")
        for file in [path, *sorted(path.parent.glob("evaluations/*/metrics.json"))]:
            metrics = json.loads(file.read_text())
            sampler = metrics["protocol"]["sampler"]
            for guidance, models in metrics["scores"].items():
                row = {"arm": arm, "forget": digit, "seed": seed, "w": guidance.removeprefix("w=")}
                row["sampler"] = f"{sampler['name']} {sampler['steps']}"
                row |= {name: models["unlearned"].get(name) for name in SCORES}
                row |= {f"original {name}": models["original"].get(name) for name in SCORES}
                row["uniform noise ua"] = models["uniform_noise"]["ua"]
                if file == path:
                    for name in ATTACKS:
                        values = metrics.get("attacks", {}).get(name, {}).get("headline", {}).get("values", {})
                        row |= {name: values.get("unlearned"), f"original {name}": values.get("original")}
                rows.append(row)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    found = pd.read_csv(HERE / "results.csv")
    found["Δ FID"] = found["fid_retain/classifier"] - found["original fid_retain/classifier"]
    return found


def cell(values: pd.Series) -> str:
    """Return mean ± standard deviation (lowest to highest)."""
    deviation = f" ± {values.std():.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{deviation} ({values.min():.2f} to {values.max():.2f})"


def show(title: str, rows: pd.DataFrame) -> None:
    """Print a table in Markdown."""
    rows = rows.reset_index()
    print(f"\n{title}\n\n| " + " | ".join(map(str, rows.columns)) + " |\n|" + "---|" * len(rows.columns))
    for row in rows.itertuples(index=False):
        print("| " + " | ".join(map(str, row)) + " |")


def table(found: pd.DataFrame) -> None:
    """Print the tables of README.md."""
    columns = ["ua_noise_aware", "halting", "noise_saturation", "retain_accuracy", "Δ FID", "drift"]
    blocks = found.groupby(["sampler", "w", "arm"])
    show("Scores", blocks[columns].agg(cell).assign(n=blocks.size()))
    own = found[found.sampler == "ddim 25"]
    pairs = own.pivot_table(columns, ["w", "forget", "seed"], "arm")
    tests = []
    for (w, arm), name in product(product((0, 2), ("path_and_null", "default")), columns[1:]):
        first, second = (pairs.loc[w][name][one] for one in ("images", arm))
        test, difference = ttest_rel(second, first), second - first
        row = {"w": w, "arm": arm, "score": name, "n": len(difference), "p": f"{test.pvalue:.1g}"}
        tests.append(row | {"difference": f"{difference.mean():+.4f} ± {difference.std():.4f}"})
    show("Against images, paired by digit and seed", pd.DataFrame(tests).set_index("w"))
    columns = ["ua_noise_aware", "ua", "uniform noise ua", "halting", "retain_accuracy", "Δ FID", "drift"]
    show("Digits, default, w = 0", own.query("w == 0 and arm == 'default'").groupby("forget")[columns].mean().round(3))
    attacked = own[(own.w == 0) & own.relearning.notna()]
    names = [name for attack in ATTACKS for name in (attack, f"original {attack}")]
    show("Attacks", attacked.groupby(["forget", "arm"])[names].agg(cell))


def draw(found: pd.DataFrame) -> None:
    """Halting of every digit under two samplers, and Δ FID: a dot per run."""
    colours = dict(zip(ARMS, ("#bbbbbb", "#1f77b4", "#e39b3b", "#c1272d"), strict=True))
    panels = [("ddim 100", 0), ("ddim 100", 2), ("ddpm 100", 0), ("ddpm 100", 2)]
    figure, axes = plt.subplots(1, 5, figsize=(17, 3.4))
    for axis, (sampler, weight) in zip(axes, panels, strict=False):
        for place, (arm, colour) in enumerate(colours.items()):
            mine = found[(found.arm == arm) & (found.sampler == sampler) & (found.w == weight)]
            axis.plot(mine.forget + (place - 1.5) / 5, mine.halting, "o", ms=4, color=colour, label=arm)
        axis.axhline(1, color="black", lw=0.8)
        axis.set(title=f"{sampler}, w = {weight}", xlabel="forgotten digit", ylabel="halting (1 is exact)")
    for place, (arm, colour) in enumerate(colours.items()):
        mine = found[(found.arm == arm) & (found.sampler == "ddim 25") & (found.w == 0)]
        axes[-1].plot(mine.forget + (place - 1.5) / 5, mine["Δ FID"], "o", ms=4, color=colour, label=arm)
    axes[-1].axhline(0, color="black", lw=0.8)
    axes[-1].set(title="ddim 25, w = 0", xlabel="forgotten digit", ylabel="Δ fid_retain/classifier")
    for axis in axes:
        axis.set_xticks(range(10))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(HERE / "figure.png", dpi=110)


if __name__ == "__main__":
    if sys.argv[1] == "table":
        found = collect()
        table(found)
        draw(found)
    else:
        quiet()
        import_lightning()
        work = make if sys.argv[1] == "fit" else attack_run
        for run in runs([int(digit) for digit in sys.argv[2:]]):
            work(*run)
