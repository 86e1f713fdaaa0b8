"""Fit every method, attack it with every attack and certify it, beside three Retrains, on a digit not used before.

`study.py fit ARM...`, `examine ARM...`, `null`, `table` and `arms`; run.sh does all. Finished work is
kept: the same command resumes.
"""

import json
import os
import sys
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd

from safemax_pl.attacks.arguments import NAMES
from safemax_pl.attacks.attack import attack
from safemax_pl.attacks.worst_case import exposure, worst
from safemax_pl.certificates.certificate import certify
from safemax_pl.certificates.leakage import UNCONDITIONAL
from safemax_pl.certificates.reading import FILE, read
from safemax_pl.common.figures import save_figure
from safemax_pl.common.files import atomic
from safemax_pl.config.command_line import import_lightning, quiet
from safemax_pl.config.compose import compose
from safemax_pl.config.groups import options
from safemax_pl.reports.figures.exposures import heat_map
from safemax_pl.reports.statistics import MIN_FORGETTING
from safemax_pl.training.fit import fit

HERE, RUNS = Path(__file__).parent, Path(os.environ.get("STUDY_RUNS", "runs/digits_hide_or_erase"))
DIGIT, SEEDS = 2, (0, 1, 2)  # drawn from 0, 2, 4, 6, 7, 9, on which no setting had been chosen
RETRAINS = [RUNS / f"retrain-{seed}" for seed in SEEDS]
COMMON = ["trainer.enable_progress_bar=false", "logger=csv", f"runs_dir={RUNS}"]
RETRAIN = [
    "unlearner=retrain",
    "data.retain_batch_size=64",
    "optimizer.lr=1e-3",
    "trainer.max_steps=2500",
    "trainer.val_check_interval=2500",
    "lr_scheduler={_target_: torch.optim.lr_scheduler.CosineAnnealingLR, _partial_: true, T_max: 2500, eta_min: 1e-5}",
    "ema_decay=0.995",
]
SMALL = {
    "selective_amnesia": ["unlearner.replay_per_class=50", "unlearner.fisher_images=50"],
    "esd": ["unlearner.replay_per_class=50"],
}
DEMO = ["data.retain_batch_size=96", "ema_decay=0.95"]
LONG = ["optimizer.lr=3e-4", "trainer.max_steps=150"]
BEFORE = ["unlearner.null_on_images=0"]
ARMS = {
    "safemax_demo_before": ["unlearner=safemax", *DEMO, *BEFORE, *LONG],
    "safemax_demo": ["unlearner=safemax", *DEMO, *LONG],
    "safemax_robust_demo": ["unlearner=safemax_robust", *DEMO, "optimizer.lr=4e-4", "trainer.max_steps=140"],
    "safemax_fast": ["unlearner=safemax", "setting=fast"],
    # others with the demo's images, steps, rate and averaging
    "noise_image_demo": ["unlearner=noise_image", "unlearner.retain_weight=2", *DEMO, *LONG],
    "salun_demo": ["unlearner=salun", *DEMO, *LONG],
    "erasediff_relabel_demo": ["unlearner=erasediff_relabel", *DEMO, *LONG],
    "retrain": RETRAIN,
} | {name: [f"unlearner={name}", "setting=tuned", *SMALL.get(name, [])] for name in options("setting/tuned")}
FAST = ["trainer.enable_progress_bar=false", "sampler=dpm_solver", "sampler.steps=10"]
ATTACKS = {
    "sampler_transfer": [
        "samplers=[{name: ddim, steps: [20, 50]}, {name: ddpm, steps: [100]}, "
        "{name: dpm_solver, spacing: trailing, steps: [10]}]",
        "guidance_weights=[0, 2]",
    ],
    "null_leak": ["guidance_weights=[-1, -0.5, 0]", "images_per_class=200"],
    "embedding_interpolation": ["starts=2", "weights=[0, 0.5, 0.8, 1, 1.2]"],
    "embedding_inversion": ["images=[10]", "budget.batch_size=16"],
    "relearning": ["images=[10]"],
    "relearning_without_class": ["budget.batch_size=16"],
    "benign_finetune": ["budget.batch_size=16"],
    "quantise": ["images_per_class=50"],
    "prune": ["images_per_class=50"],
}
NULL_BUDGET = [
    "attacks.relearning.images=[10]",
    "attacks.relearning.images_per_class=150",
    "attacks.relearning.budget.score_at=[0, 2, 5, 10, 20, 30]",
    "attacks.null_leak.guidance_weights=[-1]",
    "attacks.null_leak.images_per_class=1000",
]
VERDICTS = ["Retrain", "as Retrain", "between", "hides", "did not forget"]
NEAR, HALF = 0.25, 0.5  # worst cases; those of a Retrain beside the two others reach 0.22
ALPHA = 0.05  # of the certificates
MEMBERSHIP = {"class": "membership, class label", "null": "membership, ∅"}  # kind of the attack -> column of the figure
NAMED = {
    "safemax_demo": "safemax, demo",
    "safemax_demo_before": "safemax, demo, ∅ untaught",
    "safemax_robust_demo": "safemax_robust, demo",
    "safemax_fast": "safemax, fast",
    "noise_image_demo": "noise_image, demo's budget",
    "salun_demo": "salun, demo's budget",
    "erasediff_relabel_demo": "erasediff_relabel, demo's budget",
}
CERTIFICATE = ["certificate=quick", "sampler=dpm_solver", "sampler.steps=10", "trainer.enable_progress_bar=false"]


def make(arm: str, seed: int, digit: int = DIGIT) -> Path:
    """Return the run of an arm; fit it if it is missing."""
    settings = [*ARMS[arm], *COMMON, f"data.forget_classes=[{digit}]", f"seed={seed}"]
    if not any(one.startswith("trainer.val_check") for one in settings):
        settings.append("trainer.val_check_interval=${trainer.max_steps}")
    if digit == DIGIT:
        return fit(compose("fit", ["experiment=digits_methods", *settings]), f"{arm}-{seed}")
    settings.append(f"runs_dir={RUNS}/other")
    return fit(compose("fit", ["experiment=digits_methods", *settings]), f"{arm}-{digit}-{seed}")


def examine(run: Path) -> None:
    """Do the attacks that are missing, and the certificate."""
    done = json.loads((run / "metrics.json").read_text()).get("attacks", {})
    if names := [name for name in NAMES if name not in done]:
        budget = [f"attacks.{name}.{setting}" for name in names for setting in ATTACKS.get(name, [])]
        attack(str(run), [f"attack=[{','.join(names)}]", f"retrain={RETRAINS[0]}", *FAST, *budget])
    others = [str(one) for one in RETRAINS if one != run]
    if not (run / FILE).exists():
        certify(str(run), [f"retrains=[{','.join(others)}]", f"certificate.nonce={run.name}", *CERTIFICATE])


def null_label() -> None:
    """Write null.csv: the demo with and without rows that teach the null label, on the digits of earlier studies."""
    rows = []
    for digit, seed, arm in product((3, 8, 1), (0, 1), ("safemax_demo_before", "safemax_demo")):
        run = make(arm, seed, digit)
        if "null_leak" not in json.loads((run / "metrics.json").read_text()).get("attacks", {}):
            attack(str(run), ["attack=[relearning,null_leak]", *FAST, *NULL_BUDGET])
        if not (run / FILE).exists():
            certify(str(run), [f"certificate.nonce={run.name}", *CERTIFICATE, "certificate.leak_images=20"])
        metrics, found = json.loads((run / "metrics.json").read_text()), read(run / FILE)
        row = {"arm": arm, "forget": digit, "seed": seed, **scores(metrics)}
        for name, block in metrics["attacks"].items():
            row |= {name: block["headline"]["values"]["unlearned"]}
            row[f"{name}_original"] = block["headline"]["values"]["original"]
        for kind, one in found["membership"]["attacks"].items():
            row |= {
                f"auc_{kind}": one["auc"]["unlearned"]["value"],
                f"auc_{kind}_original": one["auc"]["original"]["value"],
            }
        rows.append(row)
    frame = pd.DataFrame(rows)
    with atomic(HERE / "null.csv") as part:
        frame.to_csv(part, index=False, float_format="%.6g")
    print(frame.groupby(["forget", "arm"]).mean(numeric_only=True).drop(columns="seed").round(3).T.to_string())


def collect() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write attacks.csv, a row per run and attack, and results.csv, a row per run; return both."""
    runs = {path.parent.name: json.loads(path.read_text()) for path in sorted(RUNS.glob("*-[0-9]/metrics.json"))}
    runs = {
        name: metrics
        for name, metrics in runs.items()
        if set(metrics.get("attacks", {})) == set(NAMES) and (RUNS / name / FILE).exists()
    }
    if missing := [one.name for one in RETRAINS if one.name not in runs]:
        sys.exit(f"{', '.join(missing)} not examined yet in {RUNS}: run `study.py examine retrain` first")
    retrains = {one.name: runs[one.name] for one in RETRAINS}
    attacks, results = [], []
    for name, metrics in runs.items():
        arm, _, seed = name.rpartition("-")
        others = [metrics for retrain, metrics in retrains.items() if retrain != name]
        mine = []
        for attacked, block in metrics["attacks"].items():
            headline, n = block["headline"], block["protocol"]["attack"]["images_per_class"]
            value = mean(one["attacks"][attacked]["headline"]["values"]["unlearned"] for one in others)
            values = headline["values"] | {"retrain": value}
            row = {"value": values["unlearned"], "original": values["original"], "retrain": value}
            weights = block["weights"] | {"retrain": "the mean of several"}
            row["exposure"] = exposure(headline | {"values": values}, block["measure"], weights, n)
            mine.append({"arm": arm, "seed": int(seed), "attack": attacked, "number": headline["name"]} | row)
        attacks += mine
        found = worst({row["attack"]: row["exposure"] for row in mine})
        results.append(
            {"arm": arm, "seed": int(seed), "settings": " ".join(ARMS[arm])}
            | scores(metrics)
            | {"worst_exposure": found[1], "worst_attack": found[0]}
            | certified(RUNS / name)
        )
    frames = pd.DataFrame(attacks), pd.DataFrame(results)
    for frame, file in zip(frames, ("attacks.csv", "results.csv"), strict=True):
        with atomic(HERE / file) as part:
            frame.to_csv(part, index=False, float_format="%.6g")
    return frames


def scores(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the scores of a run without attacks, and its cost."""
    ours, original = (metrics["scores"]["w=0"][model] for model in ("unlearned", "original"))
    row = {name: ours[name] for name in ("ua_noise_aware", "retain_accuracy", "drift", "halting")}
    row["delta_fid"] = ours["fid_retain/classifier"] - original["fid_retain/classifier"]
    row["flops"] = metrics["cost"]["unlearn_flops"] + metrics["cost"]["preparation_flops"]
    return row


def certified(run: Path) -> dict[str, Any]:
    """Return the statements of a certificate as numbers."""
    found = read(run / FILE)
    row: dict[str, Any] = {"leak": found["leakage"]["bound"]}
    row["unconditional_leak"] = max(cell["bound"] for cell in found["leakage"]["cells"] if cell["w"] == UNCONDITIONAL)
    for kind, one in found["membership"]["attacks"].items():
        row |= {f"auc_{kind}": one["auc"]["unlearned"]["value"], f"auc_{kind}_low": one["auc"]["unlearned"]["low"]}
        row[f"auc_{kind}_original"] = one["auc"]["original"]["value"]
        row[f"auc_{kind}_retrain"] = mean(area["value"] for name, area in one["auc"].items() if "retrain" in name)
    for name, one in found["similarity"]["conditions"].items():
        kind = name.partition(" ")[0]
        row |= {f"closer_{kind}": one["closer"]["difference"], f"closer_{kind}_p": one["closer"]["p_adjusted"]}
        excess = one["excess"]
        row |= {f"excess_{kind}": excess and excess["ratio"], f"excess_{kind}_p": excess and excess["p_adjusted"]}
    return row


def table() -> None:
    """Print the table of the README, and draw the heat map."""
    attacks, results = collect()
    for kind in MEMBERSHIP:  # on the scale of exposures; not among the worst cases
        ours, retrain, original = (results[f"auc_{kind}{of}"] for of in ("", "_retrain", "_original"))
        results[f"membership_{kind}"] = (retrain - ours) / (retrain - original)
    means, groups = results.groupby("arm").mean(numeric_only=True), results.groupby("arm")
    relearning = attacks.query("attack == 'relearning'").groupby("arm")["value"].mean()
    means["verdict"] = [verdict(arm, row) for arm, row in means.iterrows()]
    means["rank"] = means["verdict"].map(VERDICTS.index)
    means = means.sort_values(["rank", "worst_exposure"])
    print("worst cases of the Retrains:", results.query("arm == 'retrain'")["worst_exposure"].round(2).tolist())
    for arm, row in means.iterrows():
        mine = groups.get_group(arm)
        names = mine["worst_attack"].value_counts()
        moved = [
            sum((mine[f"closer_{kind}_p"] <= ALPHA) & (sign * mine[f"closer_{kind}"] < 0))
            for kind, sign in (("forgotten", 1), ("unconditional", -1))
        ]
        cells = [
            NAMED.get(arm, arm),
            row["verdict"],
            f"{row['worst_exposure']:.2f} ({mine['worst_exposure'].min():.2f} to {mine['worst_exposure'].max():.2f})",
            ", ".join(name if count == len(mine) else f"{name} ({count})" for name, count in names.items()),
            f"{relearning[arm]:.1f}",
            f"{row['ua_noise_aware']:.3f}",
            f"{row['delta_fid']:+.2f}",
            f"{100 * row['leak']:.1f}",
            f"{100 * row['unconditional_leak']:.1f}",
            f"{row['auc_class']:.2f}, {row['auc_null']:.2f}",
            f"{moved[0]}, {moved[1]}",
            f"{row['flops']:.1e}",
            str(len(mine)),
        ]
        print(f"| {' | '.join(cells)} |")
    cells = attacks.dropna(subset="exposure").pivot_table("exposure", "arm", "attack")
    cells.columns = [name.replace("_", " ") for name in cells.columns]
    for kind, name in MEMBERSHIP.items():
        cells[name] = means[f"membership_{kind}"]
    named = {
        arm: f"{NAMED.get(arm, arm)}  ({means.loc[arm, 'delta_fid']:+.2f})" for arm in means.index if arm != "retrain"
    }
    rows = {named[arm]: cells.loc[arm].dropna().to_dict() for arm in named}
    worst_cases = {named[arm]: means.loc[arm, "worst_exposure"] for arm in named}
    alone = {f"Retrain, seed {seed}": row for seed, row in retrain_rows(attacks).items()}
    first = results.query("arm == 'retrain'").set_index("seed")["worst_exposure"]
    first = {f"Retrain, seed {seed}": value for seed, value in first.items()}
    attacked = [name.replace("_", " ") for name in attacks.dropna(subset="exposure")["attack"].unique()]
    figure = heat_map(first | worst_cases, alone | rows, attacked, list(MEMBERSHIP.values()), references=len(alone))
    save_figure(figure, HERE / "figure.png")


def retrain_rows(attacks: pd.DataFrame) -> dict[int, dict[str, float]]:
    """Return seed of a Retrain -> attack -> exposure beside the mean of the two others."""
    mine = attacks[attacks["arm"] == "retrain"].dropna(subset="exposure")
    mine = mine.assign(attack=mine["attack"].str.replace("_", " "))
    return {seed: rows.set_index("attack")["exposure"].to_dict() for seed, rows in mine.groupby("seed")}


def verdict(arm: str, row: pd.Series) -> str:
    """Return what a method did, from its means over seeds."""
    if arm == "retrain":
        return "Retrain"
    if row["ua_noise_aware"] < MIN_FORGETTING:
        return "did not forget"
    return "as Retrain" if row["worst_exposure"] <= NEAR else "between" if row["worst_exposure"] <= HALF else "hides"


if __name__ == "__main__":
    quiet()
    import_lightning()
    command, *arguments = sys.argv[1:] or [""]
    if command == "arms":
        print(*ARMS, sep="\n")
    elif command == "table":
        table()
    elif command == "null":
        null_label()
    elif command in ("fit", "examine"):
        for arm, seed in product(arguments, SEEDS):
            run = make(arm, seed)
            if command == "examine":
                examine(run)
    else:
        sys.exit(f"got {command!r}: give arms, fit ARM..., examine ARM..., null or table")
