"""The commands of this study: `study.py papers|tuning|tuned|retrain` prints them, run.sh runs them.

Papers: every method at its published values, scaled by one rule: Adam's rate times 5 (the ratio of the base models'
own rates, 1e-3 here and 2e-4 in the family), a tenth of the steps, at least 50 and at most 100, a tenth of the
replay and Fisher sets, and bounds of a loss in the ratio of the base models' losses (0.075 here, 0.03 there).
SAFEMax and the two ablations have no published rate: theirs is the default of digits_forget1.
Tuning: a grid of six trials for every method, three rates times two values of one more setting, on digit 5 and seed 0,
which the study does not use again. Tuned: the best trial, on the study's digits and seeds.
"""

import csv
import json
import sys
from pathlib import Path

from omegaconf import OmegaConf

RUNS = "runs/digits_methods"
FIT = f"python -m safemax_pl.fit experiment=digits_methods logger=csv trainer.enable_progress_bar=false runs_dir={RUNS}"
STUDY = "-m seed=0,1,2 data.forget_classes=[8],[3],[1]"
RATES = (1e-4, 3e-4, 1e-3)
SMALL = {
    "selective_amnesia": "unlearner.replay_per_class=50 unlearner.fisher_images=50",
    "esd": "unlearner.replay_per_class=50",
}

# method -> (rate, steps) of its paper, and the setting that is tuned with its two values
METHODS: dict[str, tuple[float, int, str, tuple[float, float]]] = {
    "safemax": (4e-5, 1000, "unlearner.retain_weight", (1.0, 5.0)),
    "safemax_no_gate": (4e-5, 1000, "unlearner.retain_weight", (1.0, 5.0)),
    "noise_image": (4e-5, 1000, "unlearner.retain_weight", (1.0, 5.0)),
    "finetune": (1e-4, 1000, "unlearner.label_dropout", (0.0, 0.1)),
    "gradient_ascent": (1e-4, 1000, "trainer.max_steps", (30, 100)),
    "neggrad_plus": (1e-4, 1000, "unlearner.forget_weight", (0.1, 1.0)),
    "random_label": (1e-4, 1000, "unlearner.retain_weight", (3.07, 10.0)),
    "salun": (1e-4, 1000, "unlearner.retain_weight", (3.07, 10.0)),
    "selective_amnesia": (1e-4, 20000, "unlearner.ewc_weight", (0.1, 10.0)),
    "esd": (1e-4, 10000, "unlearner.negative_guidance", (1.0, 7.5)),
    "erasediff": (1e-4, 290, "unlearner.forget_weight", (0.1, 1.0)),
    "erasediff_relabel": (1e-4, 290, "unlearner.forget_weight", (0.1, 1.0)),
    "sfr_on": (1e-4, 300, "unlearner.adaptivity", (0.0, 0.5)),
    "rgd": (1e-5, 782, "unlearner.bound", (0.1, 1.0)),
    "siss": (5e-6, 60, "unlearner.forget_weight", (0.1, 0.5)),
    "dimum": (1e-4, 1000, "unlearner.retain_weight", (1.0, 5.0)),
}
BOUNDS = {"rgd": "unlearner.bound=0.25"}


def papers() -> list[str]:
    lines = []
    for method, (rate, steps, *_) in METHODS.items():
        scaled = f"optimizer.lr={5 * rate:g} trainer.max_steps={min(max(steps // 10, 50), 100)}"
        lines.append(
            f"{FIT}/papers unlearner={method} {scaled} {SMALL.get(method, '')} {BOUNDS.get(method, '')} {STUDY}"
        )
    return [*lines, f"{FIT}/papers unlearner=safemax_paper optimizer.lr=5e-4 {STUDY}"]


def tuning() -> list[str]:
    rates = ",".join(f"{rate:g}" for rate in RATES)
    return [
        f"{FIT}/tuning data.forget_classes=[5] seed=0 unlearner={method} {SMALL.get(method, '')} "
        f"-m optimizer.lr={rates} {knob}={','.join(map(str, values))}"
        for method, (_, _, knob, values) in METHODS.items()
    ]


def tuned() -> list[str]:
    """The best trial of each method: lowest FID among those with ua_noise_aware >= 0.99, else the most forgotten."""
    lines, trials = [], []
    for path in sorted(Path(f"{RUNS}/tuning").glob("*/metrics.json")):
        metrics, cfg = json.loads(path.read_text()), OmegaConf.load(path.with_name("config.yaml"))
        knob = METHODS[cfg.method][2]
        scores = metrics["scores"]["w=0"]["unlearned"]
        trials.append(
            {"method": cfg.method, "lr": cfg.optimizer.lr, "knob": knob, "value": OmegaConf.select(cfg, knob)}
            | {name: scores[name] for name in ("ua_noise_aware", "retain_accuracy", "fid_retain/classifier", "drift")}
        )
    with (Path(__file__).parent / "tuning.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, trials[0])
        writer.writeheader()
        writer.writerows(trials)
    for method in METHODS:
        mine = [trial for trial in trials if trial["method"] == method]
        assert len(mine) == 6, f"{method} has {len(mine)} of its 6 trials"
        best = min(mine, key=lambda trial: (-min(trial["ua_noise_aware"], 0.99), trial["fid_retain/classifier"]))
        settings = f"optimizer.lr={best['lr']:g} {best['knob']}={best['value']:g}"
        lines.append(f"{FIT}/tuned unlearner={method} {settings} {SMALL.get(method, '')} {STUDY}")
    return lines


def retrain() -> list[str]:
    """The gold standard, with a tenth of the images that the base model saw: one command per digit."""
    settings = (
        "unlearner=retrain data.retain_batch_size=64 optimizer.lr=1e-3 "
        "trainer.max_steps=1000 trainer.val_check_interval=250"
    )
    return [f"{FIT}/retrain {settings} -m seed=0,1,2 data.forget_classes=[{digit}]" for digit in (8, 3, 1)]


if __name__ == "__main__":
    print("\n".join({"papers": papers, "tuning": tuning, "tuned": tuned, "retrain": retrain}[sys.argv[1]]()))
