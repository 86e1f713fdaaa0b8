"""Fit SAFEMax with and without its defences, attack every run, and write results.csv.

`study.py` runs all of it, `study.py default clean_null` some arms; finished fits and attacks are kept.
"""

import json
import sys
from pathlib import Path

from safemax_pl.attack import attack
from safemax_pl.config import compose, quiet
from safemax_pl.fit import fit

HERE, RUNS = Path(__file__).parent, Path("runs/digits_defences")
FIT = [
    "experiment=digits_forget1",
    "data.retain_batch_size=32",
    "trainer.max_steps=50",
    "trainer.val_check_interval=50",
    "trainer.enable_progress_bar=false",
    "evaluation.plans.quick={forget_per_class: 10, retain_total: 9}",
    "evaluation.plans.standard={forget_per_class: 50, retain_total: 450}",
    "sampler=dpm_solver",
    "sampler.steps=10",
    "logger=csv",
    f"runs_dir={RUNS}",
]
# arm -> what differs from the default
ARMS = {
    "default": [],
    "clean_null": ["unlearner.clean_null=true"],
    "clean_null_often": ["unlearner.clean_null=true", "unlearner.label_dropout=0.5"],
    "null_often": ["unlearner.label_dropout=0.5"],
    "guidance_2": ["unlearner.guidance=2"],
    "halted_states": ["unlearner.halted_states=0.5"],
    "embedding_noise": ["unlearner.embedding_noise=1"],
    "embedding_noise_half": ["unlearner.embedding_noise=0.5"],
    "inner_steps": ["unlearner.inner_steps=3"],
    "inner_steps_far": ["unlearner.inner_steps=3", "unlearner.inner_lr=3e-3"],
    "inner_steps_small": ["unlearner.inner_steps=3", "unlearner.inner_lr=3e-4"],
    "long": ["trainer.max_steps=100", "trainer.val_check_interval=100"],
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


def name_of(arm: str, digit: int, seed: int) -> str:
    return f"{arm}-{digit}-{seed}"


def run(arm: str, digit: int, seed: int, attacks: list[str]) -> None:
    folder = RUNS / name_of(arm, digit, seed)
    cfg = compose("fit", [*FIT, *ARMS[arm], f"seed={seed}", f"data.forget_classes=[{digit}]"])
    fit(cfg, folder.name)
    done = json.loads((folder / "metrics.json").read_text()).get("attacks", {})
    if names := [name for name in attacks if name not in done]:
        budget = [f"attacks.{name}.{setting}" for name in names for setting in ATTACKS[name]]
        attack(str(folder), [f"attack=[{','.join(names)}]", *budget])


if __name__ == "__main__":
    quiet()
    for seed in map(int, sys.argv[2].split(",")):
        for digit in map(int, sys.argv[1].split(",")):
            for item in sys.argv[3:]:
                arm, _, names = item.partition("=")
                run(arm, digit, seed, names.split(",") if names else list(ATTACKS))
