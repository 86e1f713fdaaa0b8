"""Search the cheapest fit that forgets without harm, for SAFEMax and four baselines with equal budgets.

`study.py search METHODS`: trials drawn at random over rate, schedule, steps, batch, weights that move and retain
weight, on digit 5 and seed 0. `study.py verify METHODS`: the cheapest trials that reach the bounds, on three other
digits and three seeds. `study.py preset`: `setting=fast` on ten digits and three seeds. `study.py transfer`: the
other methods with its optimiser, batches and steps. `study.py attack`: attacks on some of its runs, with the budget
of 2026-11-28_digits_halting. `study.py table` prints the tables of README.md. Finished fits are kept: the same command
resumes.
"""

import csv
import json
import random
import sys
from itertools import product
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from safemax_pl.attacks.attack import attack
from safemax_pl.config.command_line import import_lightning, quiet
from safemax_pl.config.compose import compose
from safemax_pl.training.fit import fit

HERE, RUNS = Path(__file__).parent, Path("runs/digits_fast")
METHODS = ("safemax", "noise_image", "salun", "barrier", "sfr_on")
TRIALS, VERIFIED = 16, 2
UA, HARM = 0.99, 0.5  # bounds on ua_noise_aware and on Δ fid_retain/classifier
ATTACKS = {
    "relearning": ["images=[10]", "budget.score_at=[0,2,4,6,8,10,15,20,30,50]", "images_per_class=50"],
    "embedding_inversion": ["images=[10]", "budget.score_at=[0,25,50]", "budget.batch_size=16"],
    "late_start": [],
    "null_leak": ["guidance_weights=[-1]", "images_per_class=500"],
}
FIT = [
    "experiment=digits_methods",
    "logger=csv",
    "trainer.enable_progress_bar=false",
    "second_classifier=null",
    "evaluation.plans.quick={forget_per_class: 2, retain_total: 9}",
    f"runs_dir={RUNS}",
]


def drawn(method: str, number: int) -> list[str]:
    """Return the settings of a trial; all methods have the same ranges, around twice the steps that SAFEMax needs."""
    draw = random.Random(f"{number}")  # the same points for all methods
    steps, batch = draw.choice([5, 8, 12, 20, 40]), draw.choice([16, 32])
    rate, part, weight = 10 ** draw.uniform(-3.5, -2), draw.choice(["all", "embeddings"]), 10 ** draw.uniform(0, 1.3)
    falls = draw.choice([True, False])
    rate = rate / (1 if part == "embeddings" else 3)
    return [*training(method, part, rate, steps, batch, falls), f"unlearner.retain_weight={weight:.3g}"]


def training(method: str, part: str, rate: float, steps: int, batch: int, falls: bool) -> list[str]:
    """Return the settings of a fit; `falls`: the rate falls linearly to a tenth."""
    schedule = "{_target_: torch.optim.lr_scheduler.LinearLR, _partial_: true, start_factor: 1.0, end_factor: 0.1, "
    schedule += f"total_iters: {steps}}}"
    settings = [f"unlearner={method}", f"parameters={part}", f"optimizer.lr={rate:.3g}"]
    settings += [f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}"]
    settings += [f"data.forget_batch_size={batch}", f"data.retain_batch_size={batch}"]
    if method == "safemax":  # as when the study was made
        settings.append("unlearner.null_on_images=0")
    return settings + ([f"lr_scheduler={schedule}"] if falls else [])


def row(name: str, settings: list[str]) -> dict:
    """Fit, and return the scores."""
    folder = fit(compose("fit", [*FIT, *settings]), name)
    metrics = json.loads((folder / "metrics.json").read_text())
    ours, original = (metrics["scores"]["w=0"][model] for model in ("unlearned", "original"))
    return {
        "ua_noise_aware": ours["ua_noise_aware"],
        "Δ FID": ours["fid_retain/classifier"] - original["fid_retain/classifier"],
        "halting": ours["halting"],
        "drift": ours["drift"],
        "flops": metrics["cost"]["unlearn_flops"] + metrics["cost"]["preparation_flops"],
        "seconds": metrics["cost"]["unlearn_seconds"],
        "steps": metrics["training"]["max_steps"],
        "settings": " ".join(settings),
    }


def write(name: str, rows: list[dict]) -> None:
    with (HERE / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def search(method: str) -> None:
    where = ["data.forget_classes=[5]", "seed=0"]
    rows = [
        {"method": method, "trial": i} | row(f"{method}-trial-{i}", [*drawn(method, i), *where]) for i in range(TRIALS)
    ]
    write(f"search_{method}", rows)


def verify(method: str) -> None:
    """The cheapest trials that reach the bounds with a margin in harm, on other digits and seeds."""
    trials = pd.read_csv(HERE / f"search_{method}.csv")
    good = trials[(trials["ua_noise_aware"] >= UA) & (trials["Δ FID"] <= HARM / 2)].sort_values("flops").trial
    rows = []
    for number in good.head(VERIFIED):
        for digit in (8, 3, 1):
            for seed in (0, 1, 2):
                where = [f"data.forget_classes=[{digit}]", f"seed={seed}"]
                found = row(f"{method}-verified-{number}-{digit}-{seed}", [*drawn(method, number), *where])
                rows.append({"method": method, "trial": number, "digit": digit, "seed": seed} | found)
    if rows:
        write(f"verified_{method}", rows)


def preset() -> None:
    rows = []
    for digit in range(10):
        for seed in (0, 1, 2):
            where = ["setting=fast", f"data.forget_classes=[{digit}]", f"seed={seed}"]
            rows.append({"digit": digit, "seed": seed} | row(f"preset-{digit}-{seed}", where))
    write("preset", rows)


def transfer() -> None:
    """The other methods with the preset's optimiser, batches and steps, at several retain weights."""
    rows = []
    for method, weight, digit in product(METHODS[1:], (1, 4, 12), (8, 3, 1)):
        settings = [*training(method, "embeddings", 6e-3, 10, 32, True), f"unlearner.retain_weight={weight}"]
        found = row(f"{method}-transfer-{weight}-{digit}", [*settings, f"data.forget_classes=[{digit}]", "seed=0"])
        rows.append({"method": method, "retain_weight": weight, "digit": digit} | found)
    write("transfer", rows)


def attacked() -> None:
    """Attack the preset's runs of two digits."""
    budget = [f"attacks.{name}.{setting}" for name, settings in ATTACKS.items() for setting in settings]
    rows = []
    for digit in (3, 8):
        for seed in (0, 1, 2):
            folder = RUNS / f"preset-{digit}-{seed}"
            done = json.loads((folder / "metrics.json").read_text()).get("attacks", {})
            if left := [name for name in ATTACKS if name not in done]:
                attack(str(folder), [f"attack=[{','.join(left)}]", *budget])
            done = json.loads((folder / "metrics.json").read_text())["attacks"]
            found = {name: done[name]["headline"]["values"]["unlearned"] for name in ATTACKS}
            rows.append({"digit": digit, "seed": seed} | found)
    write("attacks", rows)


def table() -> None:
    """Print the preset's scores and the cheapest verified trial of each method, and draw figure.png."""
    found = pd.read_csv(HERE / "preset.csv")
    print(found.describe().round(3).to_string())
    print(pd.read_csv(HERE / "attacks.csv").groupby("digit")[list(ATTACKS)].agg(["mean", "std"]).round(3).to_string())
    print("reach both bounds:", ((found["ua_noise_aware"] >= UA) & (found["Δ FID"] <= HARM)).sum(), "of", len(found))
    runs = pd.read_csv(HERE / "transfer.csv")
    runs["there"] = (runs["ua_noise_aware"] >= UA) & (runs["Δ FID"] <= HARM)
    columns = ["there", "flops", "ua_noise_aware", "Δ FID", "drift"]
    print(runs.groupby(["method", "retain_weight"])[columns].mean().round(3).to_string())
    for method in METHODS:
        trials = pd.read_csv(HERE / f"search_{method}.csv")
        good = trials[(trials["ua_noise_aware"] >= UA) & (trials["Δ FID"] <= HARM)]
        print(method, f"{len(good)} of {len(trials)} trials reach the bounds; cheapest {good.flops.min():.3g}")
        if (HERE / f"verified_{method}.csv").exists():
            runs = pd.read_csv(HERE / f"verified_{method}.csv")
            runs["there"] = (runs["ua_noise_aware"] >= UA) & (runs["Δ FID"] <= HARM)
            columns = ["there", "steps", "flops", "seconds", "ua_noise_aware", "Δ FID", "drift"]
            print(runs.groupby("trial")[columns].mean().sort_values("flops").round(3).to_string())
    draw()


def draw() -> None:
    """Draw FLOPs and Δ FID of all trials and of the preset's runs; filled: the digit is forgotten."""
    blocks = [(method, pd.read_csv(HERE / f"search_{method}.csv"), "o") for method in METHODS]
    blocks.append(("safemax, setting=fast", pd.read_csv(HERE / "preset.csv"), "*"))
    figure, axis = plt.subplots(figsize=(7.5, 4.2))
    for number, (label, rows, marker) in enumerate(blocks):
        colour = "black" if marker == "*" else f"C{number}"
        for forgotten, mine in rows.groupby(rows["ua_noise_aware"] >= UA):
            style = {"marker": marker, "s": 45, "edgecolors": colour, "facecolors": colour if forgotten else "none"}
            axis.scatter(mine["flops"], mine["Δ FID"], label=label if forgotten else None, **style)
    axis.axhline(HARM, color="grey", lw=0.8, ls="--")
    axis.set_xscale("log")
    axis.set_xticks(ticks := [2e10, 5e10, 1e11, 2e11], [f"{tick:.0e}" for tick in ticks])
    axis.minorticks_off()
    axis.set_yscale("symlog", linthresh=0.5)
    axis.set_yticks(ticks := [0, 0.25, 0.5, 1, 10, 100], [f"{tick:g}" for tick in ticks])
    axis.set_ylim(-0.3, 200)
    axis.set(xlabel="FLOPs of the fit, preparation included", ylabel="Δ fid_retain/classifier")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, title=f"filled: forgotten (≥ {UA})")
    figure.savefig(HERE / "figure.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    quiet()
    import_lightning()
    part = sys.argv[1]
    if of_a_method := {"search": search, "verify": verify}.get(part):
        for one in sys.argv[2:] or METHODS:
            of_a_method(one)
    else:
        {"preset": preset, "transfer": transfer, "attack": attacked, "table": table}[part]()
