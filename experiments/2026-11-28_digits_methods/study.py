"""The commands of this study: `study.py tuning|tuned|papers|retrain|no_path` prints them, run.sh runs them.

Tuning: a sweep of eight trials for every method, over its space in configs/sweep, on digit 5 and seed 0, which are not
used again. `study.py settings` writes the best trial of each method to configs/setting/tuned, which
`setting=tuned` reads. Papers: `setting=paper`, the papers' values as they stand, of which the longest are cut to
what two cores can do in minutes. `study.py relearning` attacks the runs of digit 3 of some methods.
"""

import json
import sys
from pathlib import Path

import pandas as pd
import yaml

from safemax_pl.attacks.attack import attack
from safemax_pl.config.command_line import import_lightning, quiet
from safemax_pl.config.groups import CONFIGS, options

HERE, RUNS = Path(__file__).parent, "runs/digits_methods"
FIT = f"python -m safemax_pl.fit experiment=digits_methods logger=csv trainer.enable_progress_bar=false runs_dir={RUNS}"
STUDY = "-m seed=0,1,2 data.forget_classes=[8],[3],[1]"
TRIALS = 8
OTHERS = ("retain_only", "retrain", "safemax_paper", "safemax_no_gate")  # base models, and variants of SAFEMax
METHODS = [method for method in options("unlearner") if method not in OTHERS]
SMALL = {
    "selective_amnesia": "unlearner.replay_per_class=50 unlearner.fisher_images=50",
    "esd": "unlearner.replay_per_class=50",
}
NULL = "unlearner.null_on_path=0.25 unlearner.null_on_images=0"  # the defaults when the trials were made
RELEARNED = ("safemax", "safemax_no_path", "noise_image", "salun", "esd", "gradient_ascent")
BUDGET = [
    "attack=relearning",
    "trainer.enable_progress_bar=false",
    "sampler=dpm_solver",
    "sampler.steps=10",
    "attacks.relearning.images=[10]",
    "attacks.relearning.budget.batch_size=16",
]
# what a paper's setting is cut to here; the rest of it stands
CUT = {
    "selective_amnesia": "trainer.max_steps=1000 trainer.val_check_interval=500 unlearner.fisher_images=50 "
    "unlearner.fisher_timesteps=32 unlearner.replay_per_class=50",
    "rgd": "trainer.max_steps=260 trainer.val_check_interval=130",
    "msgm": "trainer.max_steps=1000 trainer.val_check_interval=500 lr_scheduler=null ema_decay=null "
    "data.forget_batch_size=128 data.retain_batch_size=128",
}


def tuning() -> list[str]:
    return [
        f"python -m safemax_pl.sweep experiment=digits_methods sweep={method} sweep.trials={TRIALS} sweep.prune=null "
        f"name={method} runs_dir={RUNS}/tuning data.forget_classes=[5] seed=0 logger=csv "
        f"trainer.enable_progress_bar=false {SMALL.get(method, '')} {NULL if method.startswith('safemax') else ''}"
        for method in METHODS
    ]


def settings() -> None:
    """Write configs/setting/tuned and tuning.csv: the lowest FID among trials that forget, else the most forgotten."""
    trials = pd.concat(
        pd.read_csv(f"{RUNS}/tuning/{method}/trials.csv").assign(method=method) for method in METHODS
    ).query("state == 'complete'")
    trials.drop(columns=["worker", "reason", "seconds"]).to_csv(HERE / "tuning.csv", index=False)
    for method, mine in trials.groupby("method"):
        assert len(mine) == TRIALS, f"{method} has {len(mine)} of its {TRIALS} trials"
        rank = pd.DataFrame(
            {"left": -mine["ua_noise_aware"].clip(upper=0.99), "harm": mine["delta/fid_retain/classifier"]}
        )
        best = mine.convert_dtypes().loc[rank.sort_values(["left", "harm"]).index[0]]
        steps = int(best["trainer.max_steps"])
        tree: dict = {
            "data": {"forget_batch_size": 32, "retain_batch_size": 32},
            "optimizer": {"_target_": "torch.optim.Adam"},
            "lr_scheduler": None,
            "gradient_clip": 1.0,
            "ema_decay": None,
            "trainer": {"val_check_interval": max(steps // 4, 1)},
        }
        if method.startswith("safemax"):
            tree["unlearner"] = {"on_path": 0.5, "null_on_path": 0.25, "null_on_images": 0.0}
        for key, value in best.dropna().items():
            *parents, leaf = str(key).split(".")
            if parents:
                node = tree
                for parent in parents:
                    node = node.setdefault(parent, {})
                value = value.item() if hasattr(value, "item") else value
                node[leaf] = float(f"{value:.3g}") if isinstance(value, float) else value
        found = f"The best of {TRIALS} trials on digit 5 (experiments/{HERE.name}): a start elsewhere."
        path = CONFIGS / "setting" / "tuned" / f"{method}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# @package _global_\n# {found}\n" + yaml.safe_dump(tree, sort_keys=False))


def tuned() -> list[str]:
    return [f"{FIT}/tuned unlearner={method} setting=tuned {SMALL.get(method, '')} {STUDY}" for method in METHODS]


def papers() -> list[str]:
    known = [method for method in options("setting/paper") if method not in (*OTHERS, "safemax")] + ["safemax_paper"]
    lines = []
    for method in known:
        cut = CUT.get(method, SMALL.get(method, ""))
        lines.append(f"{FIT}/papers unlearner={method} setting=paper {cut} seed=0 data.forget_classes=[8]")
    return lines


def retrain() -> list[str]:
    """The gold standard, with a tenth of the images that the base model saw: one command per digit."""
    settings = (
        "unlearner=retrain data.retain_batch_size=64 optimizer.lr=1e-3 "
        "trainer.max_steps=1000 trainer.val_check_interval=250"
    )
    return [f"{FIT}/retrain {settings} -m seed=0,1,2 data.forget_classes=[{digit}]" for digit in (8, 3, 1)]


def no_path() -> list[str]:
    """SAFEMax without the halted path, as 2026-11-25_digits_robustness had it."""
    settings = "unlearner.on_path=0 unlearner.null_on_images=0 unlearner.retain_weight=1 "
    settings += "optimizer.lr=3e-4 method=safemax_no_path"
    return [f"{FIT}/no_path {settings} -m seed=0,1,2 data.forget_classes=[3]"]


def relearning() -> None:
    """Attack the runs of digit 3, beside the Retrain in weights/, and write relearning.csv."""
    quiet()
    import_lightning()
    rows = []
    for path in sorted(Path(RUNS).glob("*/*/metrics.json")):
        metrics = json.loads(path.read_text())
        method = metrics["training"]["method"].removesuffix(" (tuned)")
        of_this = path.parts[-3] in ("tuned", "no_path") and metrics["protocol"]["forget_classes"] == ["3"]
        if not of_this or method not in RELEARNED:
            continue
        if "relearning" not in metrics.get("attacks", {}):
            attack(str(path.parent), [*BUDGET, "retrain=weights/digits/without_3"])
            metrics = json.loads(path.read_text())
        steps = metrics["attacks"]["relearning"]["headline"]["values"]
        ours, original = (metrics["scores"]["w=0"][model] for model in ("unlearned", "original"))
        harm = ours["fid_retain/classifier"] - original["fid_retain/classifier"]
        scores = {"ua_noise_aware": ours["ua_noise_aware"], "Δ FID": harm}
        rows.append({"method": method, "run": path.parent.name} | scores | steps)
    pd.DataFrame(rows).to_csv(HERE / "relearning.csv", index=False)
    print(pd.DataFrame(rows).groupby("method")[["ua_noise_aware", "Δ FID", "unlearned"]].agg(["mean", "std"]).round(3))


if __name__ == "__main__":
    if sys.argv[1] == "settings":
        settings()
    elif sys.argv[1] == "relearning":
        relearning()
    else:
        print(
            "\n".join(
                {"tuning": tuning, "tuned": tuned, "papers": papers, "retrain": retrain, "no_path": no_path}[
                    sys.argv[1]
                ]()
            )
        )
