"""Fit SAFEMax with and without its defences, attack every run, and write results.csv and figure.png.

Finished fits and attacks are kept: the same command resumes.
"""

import csv
import json
from pathlib import Path

from matplotlib import pyplot as plt

from safemax_pl.attacks.attack import attack
from safemax_pl.config.command_line import import_lightning, quiet
from safemax_pl.config.compose import compose
from safemax_pl.training.fit import fit

HERE, RUNS = Path(__file__).parent, Path("runs/digits_defences")
FIT = [
    "experiment=digits_forget1",
    "ema_decay=null",
    "data.forget_batch_size=16",
    "data.retain_batch_size=32",
    "optimizer.lr=5e-4",
    "trainer.max_steps=40",
    "trainer.val_check_interval=40",
    "trainer.enable_progress_bar=false",
    "evaluation.plans.quick={forget_per_class: 10, retain_total: 9}",
    "evaluation.plans.standard={forget_per_class: 50, retain_total: 450}",
    "sampler=dpm_solver",
    "sampler.steps=10",
    "unlearner.on_path=0",  # as when the study was made
    "unlearner.null_on_images=0",
    "unlearner.retain_weight=5",
    "logger=csv",
    f"runs_dir={RUNS}",
]
# arm -> what differs from the default
ARMS = {
    "default": [],
    "inner_steps": ["unlearner=safemax_robust"],
    "clean_null": [
        "unlearner=safemax_robust",
        "unlearner.inner_steps=0",
        "unlearner.clean_null=true",
        "unlearner.label_dropout=0.3",
    ],
    "null_often": ["unlearner.label_dropout=0.3"],  # what of clean_null is just its rate
    "longer": ["trainer.max_steps=93", "trainer.val_check_interval=93"],  # 1.3 times the FLOPs of inner_steps
}
# attack -> its budget, small enough for many runs
ATTACKS = {
    "null_leak": ["guidance_weights=[-1]", "images_per_class=500"],
    "sampler_transfer": [
        "samplers=[{name: ddim, spacing: leading, steps: [10]}, {name: ddpm, spacing: leading, steps: [20]}, "
        "{name: dpm_solver, spacing: trailing, steps: [10]}]",
        "images_per_class=25",
    ],
    "relearning": ["images=[10]", "budget.score_at=[0,5,10,20,30,50]", "budget.batch_size=16", "images_per_class=40"],
    "relearning_without_class": ["budget.score_at=[0,50]", "budget.batch_size=16", "samples_per_class=10"],
    "embedding_inversion": ["images=[10]", "budget.score_at=[0,25,50]", "budget.batch_size=16"],
}


# (arm, its attacks, seeds), in the order in which they are run
WEIGHTS = ["null_leak", "embedding_inversion", "relearning", "relearning_without_class"]
PLAN = [
    ("default", WEIGHTS, (0, 1, 2)),
    ("inner_steps", WEIGHTS, (0, 1, 2)),
    ("clean_null", ["null_leak"], (0, 1, 2)),
    ("default", ["sampler_transfer"], (0,)),
    ("longer", ["relearning"], (0, 1, 2)),
    ("null_often", ["null_leak"], (0, 1, 2)),
]
BETTER = {
    "null_leak": "share of ∅ images, lower is better",
    "sampler_transfer": "worst ua_noise_aware, higher is better",
    "relearning": "steps, higher is better",
    "relearning_without_class": "worst ua_noise_aware, higher is better",
    "embedding_inversion": "worst ua_noise_aware, higher is better",
}
SCORES = ("ua_noise_aware", "retain_accuracy", "fid_retain/classifier", "drift")


def run(arm: str, digit: int, seed: int, attacks: list[str]) -> None:
    """Fit, and do the attacks that are missing."""
    folder = RUNS / f"{arm}-{digit}-{seed}"
    fit(compose("fit", [*FIT, *ARMS[arm], f"seed={seed}", f"data.forget_classes=[{digit}]"]), folder.name)
    done = json.loads((folder / "metrics.json").read_text()).get("attacks", {})
    if names := [name for name in attacks if name not in done]:
        budget = [f"attacks.{name}.{setting}" for name in names for setting in ATTACKS[name]]
        attack(str(folder), [f"attack=[{','.join(names)}]", *budget])


def collect() -> list[dict]:
    """One row per finished run: its scores and the headline number of every attack on it; written to results.csv."""
    rows = []
    for path in sorted(RUNS.glob("*/metrics.json")):
        metrics = json.loads(path.read_text())
        arm, digit, seed = path.parent.name.split("-")
        models = metrics["scores"]["w=0"]
        row = {"arm": arm, "forget": digit, "seed": seed} | {name: models["unlearned"][name] for name in SCORES}
        row["original fid_retain/classifier"] = models["original"]["fid_retain/classifier"]
        row["unlearn_flops"] = metrics["cost"]["unlearn_flops"]
        for name in ATTACKS:
            values = metrics.get("attacks", {}).get(name, {}).get("headline", {}).get("values", {})
            row |= {name: values.get("unlearned"), f"original {name}": values.get("original")}
        rows.append(row)
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return rows


def draw(rows: list[dict]) -> None:
    """One panel per attack, one column per arm, one dot per run; the original's mean as a line."""
    figure, axes = plt.subplots(1, len(ATTACKS), figsize=(3.2 * len(ATTACKS), 3.6))
    for axis, name in zip(axes, ATTACKS, strict=True):
        mine = [row for row in rows if row[name] is not None]
        arms = [arm for arm in ARMS if any(row["arm"] == arm for row in mine)]
        for digit, colour in (("3", "#1f77b4"), ("8", "#c1272d")):
            chosen = [row for row in mine if row["forget"] == digit]
            places = [arms.index(row["arm"]) + (-0.1 if digit == "3" else 0.1) for row in chosen]
            axis.plot(places, [row[name] for row in chosen], "o", color=colour, alpha=0.7, label=f"digit {digit}")
        originals = [row[f"original {name}"] for row in mine]
        axis.axhline(sum(originals) / len(originals), color="#bbbbbb", label="original")
        axis.set_xticks(range(len(arms)), arms, rotation=40, ha="right", fontsize=8)
        axis.set_xlim(-0.5, len(arms) - 0.5)
        axis.set(title=f"{name}\n({BETTER[name]})", ylim=(0, None))
        axis.title.set_fontsize(9)
    axes[-1].legend(fontsize=8, loc="center")
    figure.tight_layout()
    figure.savefig(HERE / "figure.png", dpi=120)


if __name__ == "__main__":
    quiet()
    import_lightning()
    for seed in (0, 1, 2):
        for arm, attacks, seeds in PLAN:
            if seed in seeds:
                for digit in (3, 8):
                    run(arm, digit, seed, attacks)
    draw(collect())
