"""Fit SAFEMax before and after hardening on three digits, score it under two samplers, and attack it beside Retrain.

`study.py fit ARM DIGITS`, `study.py retrain DIGITS`, `study.py attack ARM DIGITS` and `study.py table`; run.sh does
all. Finished work is kept: the same command resumes.
"""

import csv
import json
import os
import sys
from itertools import product
from pathlib import Path

import pandas as pd

from safemax_pl.attacks.attack import attack
from safemax_pl.config.command_line import import_lightning, quiet
from safemax_pl.config.compose import compose
from safemax_pl.runs.evaluate import evaluate
from safemax_pl.training.fit import fit

HERE, RUNS = Path(__file__).parent, Path(os.environ.get("HARDENING_RUNS", "runs/digits_hardening"))
FIT = [
    "experiment=digits_forget1",
    "trainer.enable_progress_bar=false",
    "evaluation.plans.quick={forget_per_class: 10, retain_total: 9}",
    "evaluation.plans.standard={forget_per_class: 100, retain_total: 450}",
    "logger=csv",
    f"runs_dir={RUNS}",
]
RETRAIN = [
    "experiment=digits_methods",
    "unlearner=retrain",
    "data.retain_batch_size=64",
    "optimizer.lr=1e-3",
    "trainer.max_steps=1000",
    "trainer.val_check_interval=1000",
    "trainer.enable_progress_bar=false",
    "logger=csv",
    f"runs_dir={RUNS}",
]
ROBUST = "unlearner=safemax_robust optimizer.lr=4e-4 ema_decay=0.95 trainer.max_steps=140"
ARMS = {
    "before": "unlearner=safemax unlearner.on_path=0.5 unlearner.null_on_path=0.5 unlearner.retain_weight=10 "
    "optimizer.lr=2e-4 ema_decay=null trainer.max_steps=100",
    "demo": "unlearner=safemax unlearner.on_path=0.33 unlearner.null_on_path=0.5 unlearner.retain_weight=2 "
    "optimizer.lr=3e-4 ema_decay=0.95 trainer.max_steps=150",
    "hardened": f"{ROBUST} unlearner.on_path=0.33 unlearner.retain_weight=4 unlearner.inner_steps=1 "
    "unlearner.inner_lr=6e-4 unlearner.inner_share=0.7 unlearner.inner_on_path=false",
}
DIGITS, SEEDS = (3, 8, 1), (0, 1, 2)
FEW = "evaluation.plans.standard={forget_per_class: 50, retain_total: 9}"  # for DDIM with 100 steps
ATTACKS = {
    "relearning": ["images=[10]"],  # the other settings are the defaults
    "null_leak": ["guidance_weights=[-1]", "images_per_class=500"],
    "embedding_inversion": ["images=[10]", "budget.score_at=[0,25,50]", "budget.batch_size=16"],
}
SCORES = ("ua_noise_aware", "ua", "halting", "retain_accuracy", "fid_retain/classifier", "drift", "noise_saturation")


def make(arm: str, digit: int, seed: int) -> None:
    """Fit, and score the forget images with 100 steps of DDIM too."""
    settings = [*ARMS[arm].split(), "unlearner.null_on_images=0", f"seed={seed}", f"data.forget_classes=[{digit}]"]
    settings.append("trainer.val_check_interval=${trainer.max_steps}")
    folder = fit(compose("fit", [*FIT, *settings]), f"{arm}-{digit}-{seed}")
    if not list(folder.glob("evaluations/*/metrics.json")):
        evaluate(str(folder), ["sampler.steps=100", FEW])


def retrain(digit: int) -> Path:
    """Return the model that never saw the digit; all digits but 3, which is shipped, are trained first."""
    if digit == 3:
        return Path("weights/digits/without_3")
    return fit(compose("fit", [*RETRAIN, f"data.forget_classes=[{digit}]"]), f"without_{digit}")


def attack_run(arm: str, digit: int, seed: int) -> None:
    """Do the attacks that are missing."""
    folder = RUNS / f"{arm}-{digit}-{seed}"
    done = json.loads((folder / "metrics.json").read_text()).get("attacks", {})
    if names := [name for name in ATTACKS if name not in done]:
        budget = [f"attacks.{name}.{setting}" for name in names for setting in ATTACKS[name]]
        attack(str(folder), [f"attack=[{','.join(names)}]", f"retrain={retrain(digit)}", *budget])


def collect() -> pd.DataFrame:
    """Return a row per run, and write them to results.csv."""
    rows = []
    for path in sorted(RUNS.glob("*-*-*/metrics.json")):
        arm, digit, seed = path.parent.name.split("-")
        metrics = json.loads(path.read_text())
        models = metrics["scores"]["w=0"]
        row = {"arm": arm, "forget": int(digit), "seed": int(seed), "settings": ARMS[arm]}
        row |= {name: models["unlearned"].get(name) for name in SCORES}
        name = "fid_retain/classifier"
        row["delta_fid"] = models["unlearned"][name] - models["original"][name]
        for file in path.parent.glob("evaluations/*/metrics.json"):
            row["halting_ddim_100"] = json.loads(file.read_text())["scores"]["w=0"]["unlearned"]["halting"]
        row["flops"] = metrics["cost"]["unlearn_flops"]
        for name in ATTACKS:
            values = metrics.get("attacks", {}).get(name, {}).get("headline", {}).get("values", {})
            row |= {f"{name}{of}": values.get(model) for of, model in OF.items()}
        rows.append(row)
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    return pd.DataFrame(rows)


OF = {"": "unlearned", " of original": "original", " of retrain": "retrain"}


def table(found: pd.DataFrame) -> None:
    """Print means ± standard deviations over seeds by digit and arm."""
    names = ["ua_noise_aware", "halting", "halting_ddim_100", "retain_accuracy", "delta_fid", "drift", "flops"]
    names += [f"{name}{of}" for name in ATTACKS for of in OF]
    groups = found.groupby(["forget", "arm"])
    for (digit, arm), rows in groups:
        print(f"\ndigit {digit}, {arm}, n = {len(rows)}")
        for name in names:
            values = rows[name].dropna()
            print(f"  {name}: {values.mean():.4g} ± {values.std():.2g} ({values.min():.3g} to {values.max():.3g})")


if __name__ == "__main__":
    quiet()
    import_lightning()
    command, arguments = sys.argv[1], sys.argv[2:]
    if command == "table":
        table(collect())
    elif command == "retrain":
        for digit in arguments:
            retrain(int(digit))
    else:
        work = {"fit": make, "attack": attack_run}[command]
        for seed, digit in product(SEEDS, arguments[1:]):
            work(arguments[0], int(digit), seed)
