"""The commands of this study: `study.py PART` prints those of a part, one a line, and run.sh runs them.

Parts, what matters most first:
  classifier   the judge of CIFAR-10, shipped as weights/cifar10/classifier
  candidates   the ceiling of the hardware, and three networks trained for equal seconds
  pretrain     the base model: of the candidates that may be shipped the one of the lowest FID, for BASE_SECONDS
  table        every class forgotten in turn by eight methods; the bird first, as plain ua misjudges it
  gate         SAFEMax's gate: decay lambda, and hard windows below and above tau
  targets      SAFEMax's target: the readings of the paper's "eps_T"
  cifar100     judge and base model of CIFAR-100, and ten of its classes forgotten at once
  judges       second judges of both
  collect      write the tables and figures of what has finished; run.sh does so at its end

What has finished, and what is in weights/ already, is left out.

Every method has its published rate and steps, but at most 1 000 steps; SAFEMax has none and takes those of
experiment=cifar10_forget1. All see 32 forget and 96 retain images a step.
"""

import csv
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt

from benchmarks.timing import default_device, matmul_flops
from safemax_pl.diffusion import Diffusion
from safemax_pl.errors import clear_errors, unknown
from safemax_pl.files import atomic, write_csv, write_json
from safemax_pl.hardware import hardware
from safemax_pl.publish import LIMITS
from safemax_pl.report import report
from safemax_pl.reports.reading import FinishedRun, read
from safemax_pl.runs import read_metrics

DRY = os.environ.get("DRY") == "1"
RUNS = Path("runs/cifar_dry" if DRY else "runs/cifar")
WEIGHTS = RUNS / "weights" if DRY else Path("weights")
OUT = RUNS / "results" if DRY else Path(__file__).parent
BASE_SECONDS = float(os.environ.get("BASE_SECONDS", 1200))
CANDIDATE_SECONDS = int(os.environ.get("CANDIDATE_SECONDS", 15 if DRY else 90))
BATCH = 8 if DRY else 256
FID = "fid_retain/classifier"

NETWORKS = ("unet_cifar", "unet_medium", "unet_small")
CLASSES = ("airplane", "automobile", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # and the bird
METHODS = {  # steps
    "safemax": 500,
    "salun": 1000,
    "safemax_paper": 500,
    "gradient_ascent": 1000,
    "selective_amnesia": 1000,  # of 20 000
    "esd": 1000,  # of 10 000
    "erasediff": 290,
    "sfr_on": 300,
}
THREE_SEEDS = ("safemax", "salun")
AT_ONCE = ("safemax", "salun", "sfr_on", "esd")  # on CIFAR-100
DECAYS = (0, 1, 5, 20, 50, 100)
BOUNDS = (100, 250, 500, 750)
STUDIED = "airplane"  # of gate and targets: the class of the poster's own study of lambda
TARGETS = {
    "max_entropy_1": ["unlearner.target.image_std=1"],
    "max_entropy_uniform": ["unlearner.target.image_std=0.57735"],
    "identity": ["~unlearner.target.image_std", "unlearner.target._target_=safemax_pl.targets.IdentityTarget"],
    "fresh_noise": ["~unlearner.target.image_std", "unlearner.target._target_=safemax_pl.targets.FreshNoiseTarget"],
}
POSTER = {"noise_std": "0.526 to 0.564", "noise_saturation": "0.07 to 0.10", "entropy": "1.12 to 1.16"}

# What makes a dry run of the same commands: everything tiny
DRY_BATCHES = ["data.forget_batch_size=4", "data.retain_batch_size=4"]
DRY_METHODS = {
    "selective_amnesia": [
        "unlearner.replay_per_class=2",
        "unlearner.fisher_images=4",
        "unlearner.fisher_timesteps=2",
    ],
    "esd": ["unlearner.replay_per_class=2"],
    "sfr_on": ["unlearner.fisher_batches=2"],
}
DRY_NETWORKS = {
    "unet_cifar": "[24,32,32,32]",
    "unet_medium": "[16,24,24,24]",
    "unet_small": "[8,16,16,16]",
}
DRY_JUDGES = {
    "classifier": ["architecture.widths=[8,16,32]", "architecture.blocks=1"],
    "second_classifier": ["architecture.width=32", "architecture.blocks=1"],
}


def dry_fit(data: str) -> list[str]:
    few = 100 if data == "cifar100" else 10
    return [
        "trainer.max_steps=4",
        "trainer.val_check_interval=4",
        "trainer.log_every_n_steps=1",
        "sampler.steps=3",
        "evaluation.batch_size=100",
        f"evaluation.plans.quick={{forget_per_class:1,retain_total:{few}}}",
        "evaluation.plans.standard={forget_per_class:5,retain_total:200}",
    ]


# -- commands ----------------------------------------------------------------------------------------------------------


def python(module: str, *words: str | Path) -> str:
    return shlex.join(["python", "-m", f"safemax_pl.{module}", *map(str, words)])


def experiment(module: str, name: str, part: str, *overrides: str) -> str:
    data = name.partition("_")[0]
    place = [f"runs_dir={RUNS / part}", "logger=csv", "trainer.enable_progress_bar=false"]
    if path := os.environ.get("CIFAR_PATH"):
        place.append(f"data.path={path}/{data}")
    if module == "fit" and (inception := os.environ.get("INCEPTION")):
        place.append(f"evaluation.inception={inception}")
    if module == "fit" and DRY:
        place += [f"classifier={WEIGHTS / data}/classifier", "second_classifier=null"]
    return python(module, f"experiment={name}", *place, *overrides)


def finished(part: str, name: str) -> bool:
    return read_metrics(RUNS / part / name) is not None


def judge(data: str, kind: str = "classifier") -> list[str]:
    tiny = ["batch_size=32", "trainer.max_steps=30", "trainer.val_check_interval=30", *DRY_JUDGES[kind]] if DRY else []
    name = f"{data}_{kind}"
    if (WEIGHTS / data / kind / "config.json").exists():
        return []
    return [
        experiment("fit_classifier", name, "judges", f"name={name}", *tiny),
        python("publish", RUNS / "judges" / name, WEIGHTS / data / kind),
    ]


def network(name: str) -> list[str]:
    tiny = [f"model.channels={DRY_NETWORKS[name]}", "model.blocks=1", "model.norm_groups=8", "model.head_dim=8"]
    return [f"model={name}", *(tiny if DRY else [])]


def candidates() -> list[str]:
    """No schedule, as it would have to know how many steps the seconds have."""
    scored = ["evaluation.guidance=[0]", "sampler.steps=50", "evaluation.plans.standard.retain_total=2000"]
    scored = [*dry_fit("cifar10"), "evaluation.guidance=[0]"] if DRY else scored
    clock = f"{CANDIDATE_SECONDS // 60:02d}:{CANDIDATE_SECONDS % 60:02d}"
    time = [f"+trainer.max_time=00:00:{clock}", "trainer.max_steps=1000000", "trainer.val_check_interval=1000000"]
    fixed = ["lr_scheduler=null", "ema_decay=0.999", f"data.retain_batch_size={BATCH}"]
    measured = [] if (RUNS / "ceiling.json").exists() else [f"python {shlex.quote(sys.argv[0])} ceiling"]
    return measured + [
        experiment("fit", "cifar10_pretrain", "candidates", f"name={name}", *network(name), *scored, *time, *fixed)
        for name in NETWORKS
        if not finished("candidates", name)
    ]


def chosen(data: str) -> list[str]:
    """Overrides of the network with the lowest FID at equal seconds, and of the steps that BASE_SECONDS have."""
    measured = {name: found for name in NETWORKS if (found := read_metrics(RUNS / "candidates" / name)) is not None}
    shippable = {
        name: found
        for name, found in measured.items()
        if 2 * found["cost"]["trainable_parameters"] / 1e6 <= LIMITS["unet"]
    }
    if not shippable:
        print("no candidate has been measured: the network and the steps are the experiment's", file=sys.stderr)
        return [*network("unet_medium"), *dry_fit(data), f"data.retain_batch_size={BATCH}"] if DRY else []
    best = min(shippable, key=lambda name: shippable[name]["scores"]["w=0"]["model"][FID])
    steps = 8 if DRY else round(BASE_SECONDS * shippable[best]["cost"]["images_per_second"] / BATCH, -2)
    tiny = [*dry_fit(data), f"data.retain_batch_size={BATCH}"] if DRY else []
    return [*network(best), *tiny, f"trainer.max_steps={steps:.0f}"]


def base_model(data: str) -> list[str]:
    name = f"{data}_pretrain"
    if (WEIGHTS / data / "README.md").exists():
        return []
    return [
        experiment("fit", name, "pretrain", f"name={name}", *chosen(data)),
        python("publish", RUNS / "pretrain" / name, WEIGHTS / data),
    ]


def forget(name: str, part: str, method: str, steps: int, *overrides: str) -> str:
    data = name.partition("_")[0]
    length = [f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}", "evaluation.batch_size=500"]
    if DRY:
        length = [*dry_fit(data), *DRY_BATCHES, *DRY_METHODS.get(method, []), f"model.path={WEIGHTS / data}"]
    return experiment("fit", name, part, f"unlearner={method}", *length, *overrides)


def table() -> list[str]:
    def line(method: str, classes: Iterable[str], seed: int) -> list[str]:
        sets = [f"[{name}]" for name in classes if not finished("table", f"{method}-{name}-{seed}")]
        called = "name=${method}-${data.forget_classes.0}-${seed}"
        settings = [called, f"seed={seed}", "-m", f"data.forget_classes={','.join(sets)}"]
        return [forget("cifar10_forget1", "table", method, METHODS[method], *settings)] if sets else []

    others, seeds = ((), (1,)) if DRY else (CLASSES, (1, 2))
    blocks = [
        *(line(method, ["bird"], 0) for method in METHODS),
        *(line(method, ["bird"], seed) for method in THREE_SEEDS for seed in seeds),
        *(line(method, others, 0) for method in METHODS),
        *(line(method, others, seed) for method in THREE_SEEDS for seed in seeds),
    ]
    return [command for block in blocks for command in block]


def ancestral(run: Path) -> dict[str, Any] | None:
    """What `evaluate` has found for a run under all steps of the ancestral sampler."""
    found = (json.loads(path.read_text()) for path in sorted(run.glob("evaluations/*/metrics.json")))
    return next((metrics for metrics in found if metrics["protocol"]["sampler"]["name"] == "ddpm"), None)


def fit_and_evaluate(part: str, name: str, *overrides: str) -> list[str]:
    """One fit of SAFEMax at w = 0, scored with DDIM and, if it has not been yet, with the ancestral sampler."""
    settings = [f"name={name}", f"data.forget_classes=[{STUDIED}]", "evaluation.guidance=[0]", *overrides]
    run = RUNS / part / name
    lines = [] if finished(part, name) else [forget("cifar10_forget1", part, "safemax", METHODS["safemax"], *settings)]
    if ancestral(run) is None:
        plan = "{forget_per_class: 10, retain_total: 90}" if DRY else "{forget_per_class: 500, retain_total: 90}"
        steps = ["sampler.steps=10"] if DRY else []
        lines.append(python("evaluate", run, "sampler=ddpm", *steps, f"evaluation.plans.standard={plan}"))
    return lines


def gate() -> list[str]:
    decays, bounds = (DECAYS[:2], BOUNDS[:1]) if DRY else (DECAYS, BOUNDS)
    gates = {f"decay_{decay}": [f"unlearner.gate.decay={decay}"] for decay in decays}
    for bound in bounds:
        for start, end in ((0, bound), (bound, 1000)):
            window = ["unlearner.gate.decay=0", f"unlearner.gate.window=[{start},{end}]"]
            gates[f"window_{start}_{end}"] = window
    return [line for name, overrides in gates.items() for line in fit_and_evaluate("gate", name, *overrides)]


def targets() -> list[str]:
    return [line for name, overrides in TARGETS.items() for line in fit_and_evaluate("targets", name, *overrides)]


def cifar100() -> list[str]:
    def line(method: str, seed: int) -> str:
        steps = 1000 if method == "safemax" else METHODS[method]  # as experiment=cifar100_forget10 has
        return forget("cifar100_forget10", "cifar100", method, steps, f"name={method}-{seed}", f"seed={seed}")

    runs = [(method, 0) for method in AT_ONCE]
    runs += [] if DRY else [(method, seed) for method in THREE_SEEDS for seed in (1, 2)]
    unlearned = [line(method, seed) for method, seed in runs if not finished("cifar100", f"{method}-{seed}")]
    return [*judge("cifar100"), *base_model("cifar100"), *unlearned]


def judges() -> list[str]:
    return judge("cifar10", "second_classifier") + judge("cifar100", "second_classifier")


# -- results -----------------------------------------------------------------------------------------------------------


def ceiling() -> None:
    """Measure the fastest matrix product of this hardware."""
    device = default_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    found = {"hardware": hardware(device), "dtype": str(dtype), "flops_per_second": matmul_flops(device, dtype)}
    write_json(RUNS / "ceiling.json", found)
    print(f"{found['flops_per_second'] / 1e12:.3g} TFLOP/s of {found['dtype']} matrix products on {found['hardware']}")


def collect() -> None:
    """Write tables and figures of all runs that have finished."""
    texts = [judged(), base_models()]
    for part, (title, table_of) in COMPARED.items():
        if any((RUNS / part).glob("*/metrics.json")):
            report([RUNS / part], OUT / part, title)
            texts.append(table_of(read([RUNS / part])[0]))
    with atomic(OUT / "tables.md") as part_file:
        part_file.write_text("\n\n".join(text for text in texts if text) + "\n")
    print(f"written: {OUT}/tables.md")


def markdown(title: str, rows: list[dict[str, Any]]) -> str:
    """A heading and a table: one line per row, one column per key of any row."""
    if not rows:
        return ""
    names = list(dict.fromkeys(key for row in rows for key in row))
    shown = [[f"{row[name]:.4g}" if isinstance(row.get(name), float) else str(row.get(name, "")) for name in names]
             for row in rows]  # fmt: skip
    lines = [names, ["---"] * len(names), *shown]
    return "\n".join([f"## {title}", "", *(f"| {' | '.join(line)} |" for line in lines)])


def base_models() -> str:
    """Candidates and base models: quality, speed, and the share of the ceiling that they reach."""
    path = RUNS / "ceiling.json"
    top = json.loads(path.read_text()) if path.exists() else {}
    rows, losses = [], {}
    for folder in sorted([*(RUNS / "candidates").glob("*"), *(RUNS / "pretrain").glob("*")]):
        metrics = read_metrics(folder)
        if metrics is None:
            continue
        cost, made_on = metrics["cost"], metrics["ranks"][0]["hardware"]
        rate = cost["unlearn_flops"] / cost["unlearn_seconds"]
        row = {
            "run": f"{folder.parent.name}/{folder.name}",
            "parameters": int(cost["trainable_parameters"]),
            "steps": metrics["training"]["steps"],
            "seconds": cost["unlearn_seconds"],
            "images per second": cost["images_per_second"],
            "TFLOP/s": rate / 1e12,
            "MFU": rate / top["flops_per_second"] if top.get("hardware") == made_on else "",
            "memory, MB": cost["peak_memory_mb"],
        }
        for guidance, models in metrics["scores"].items():
            scores = {name: value for name, value in models["model"].items() if name.startswith(("fid", "retain_acc"))}
            row |= {f"{name}, {guidance}": value for name, value in scores.items()}
        rows.append(row | {"hardware": made_on})
        with (folder / "metrics.csv").open(newline="") as file:
            losses[row["run"]] = [
                (int(line["step"]), float(line["loss/retain"])) for line in csv.DictReader(file) if line["loss/retain"]
            ]
    if rows:
        write_csv(OUT / "base_models.csv", rows)
        figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
        for name, points in losses.items():
            axis.plot(*zip(*points, strict=True), lw=0.8, label=name)
        axis.set(xlabel="step", ylabel="loss of one batch", yscale="log", title="training of the base models")
        axis.legend(fontsize=8)
        save(figure, "base_models.png")
    return markdown("Base models", rows)


def judged() -> str:
    rows = []
    for folder in sorted((RUNS / "judges").glob("*")):
        if (metrics := read_metrics(folder)) is not None:
            names = ("accuracy", "accuracy_noise_aware", "temperature", "n_test")
            rows.append({"judge": folder.name} | {name: metrics["scores"][name] for name in names})
    return markdown("Judges", rows)


def classes(runs: list[FinishedRun]) -> str:
    """Plain `ua` and `ua_noise_aware` by class, means over seeds: what the bird is about."""
    texts: list[str] = []
    for guidance in runs[0].metrics["scores"]:
        rows = []
        for method in dict.fromkeys(
            run.method for run in sorted(runs, key=lambda run: list(METHODS).index(run.method))
        ):
            for metric in ("ua", "ua_noise_aware", f"delta/{FID}"):
                row: dict[str, Any] = {"method": method, "metric": metric}
                for name in ("bird", *CLASSES):
                    found = [
                        run.values(guidance, "unlearned")[metric]
                        for run in runs
                        if run.method == method and run.forget == name
                    ]
                    row[name] = sum(found) / len(found) if found else ""
                rows.append(row)
        texts.append(markdown(f"By forgotten class, {guidance}", rows))
    return "\n\n".join(texts)


def both_samplers(run: FinishedRun, names: Iterable[str]) -> list[dict[str, Any]]:
    """A row per sampler of the scores of one run at w = 0."""
    rows = [{"sampler": run.metrics["protocol"]["sampler"]["name"], **run.values("w=0", "unlearned")}]
    if (other := ancestral(run.folder)) is not None:
        rows.append({"sampler": "ddpm", **other["scores"]["w=0"]["unlearned"]})
    return [{"run": run.folder.name, **{name: row.get(name, "") for name in ("sampler", *names)}} for row in rows]


def gates(runs: list[FinishedRun]) -> str:
    """Forgetting and harm against lambda and tau, beside the share of the image's amplitude that theory leaves.

    A student that halts below tau keeps what the chain holds there: of an image's amplitude about sqrt(abar_tau)
    under DDIM and abar_tau under the ancestral sampler.
    """
    process = Diffusion("linear", "epsilon", 1000)
    rows = []
    for run in runs:
        start, end = run.settings.get("unlearner.gate.window", (0, 1000))
        gate = {"lambda": run.settings["unlearner.gate.decay"], "from": start, "to": end}
        amplitude = process.coefficients(torch.tensor([end]))[0].item() if start == 0 and end < 1000 else None
        for row in both_samplers(run, ("ua", "ua_noise_aware", "forget_probability", f"delta/{FID}")):
            left = "" if amplitude is None else amplitude if row["sampler"] == "ddim" else amplitude**2
            rows.append({**row, **gate, "predicted residual": left})
    rows.sort(key=lambda row: (row["to"] - row["from"] < 1000, row["from"] > 0, row["lambda"], row["from"], row["to"]))
    write_csv(OUT / "gate.csv", rows)
    draw_gates(rows)
    return markdown(f"Gate, {STUDIED} forgotten, w = 0", rows)


def draw_gates(rows: list[dict[str, Any]]) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained", sharey="row")
    for column, (title, x, mine) in enumerate((
        ("soft gate", "lambda", [row for row in rows if row["to"] - row["from"] == 1000]),
        ("window [0, tau)", "to", [row for row in rows if row["from"] == 0 and row["to"] < 1000]),
        ("window [tau, T)", "from", [row for row in rows if row["from"] > 0]),
    )):  # fmt: skip
        for sampler, style in (("ddim", "o-"), ("ddpm", "s--")):
            points = [row for row in mine if row["sampler"] == sampler]
            for metric, colour in (("ua", "#d55e00"), ("ua_noise_aware", "#0072b2")):
                values = [row[metric] for row in points]
                axes[0, column].plot(
                    [row[x] for row in points], values, style, color=colour, label=f"{metric}, {sampler}"
                )
            if column == 1:
                left = [row["predicted residual"] for row in points]
                axes[0, 1].plot([row[x] for row in points], left, style[1:], color="0.6", label=f"residual, {sampler}")
        harm = [row for row in mine if row["sampler"] == "ddim"]
        axes[1, column].plot([row[x] for row in harm], [row[f"delta/{FID}"] for row in harm], "o-", color="0.3")
        axes[0, column].set(title=title, ylim=(-0.05, 1.05))
        axes[1, column].set(xlabel=x.replace("to", "tau").replace("from", "tau"))
        if column == 0:
            for axis in axes[:, 0]:
                axis.set_xscale("symlog", linthresh=1)
    axes[0, 0].set_ylabel("share")
    axes[1, 0].set_ylabel(f"delta {FID}")
    axes[0, 1].legend(fontsize=7)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    save(figure, "gate.png")


def readings(runs: list[FinishedRun]) -> str:
    """The noise that every target makes, beside the poster's."""
    names = (*POSTER, "ua", "ua_noise_aware", f"delta/{FID}")
    rows = [row for run in sorted(runs, key=lambda run: list(TARGETS).index(run.folder.name))
            for row in both_samplers(run, names)]  # fmt: skip
    write_csv(OUT / "targets.csv", rows)
    return markdown(f"Targets, {STUDIED} forgotten, w = 0", [*rows, {"run": "the poster's samples", **POSTER}])


def save(figure: Any, name: str) -> None:
    with atomic(OUT / name) as part:
        figure.savefig(part, dpi=110, format="png")
    plt.close(figure)


PARTS = {
    "classifier": lambda: judge("cifar10"),
    "candidates": candidates,
    "pretrain": lambda: base_model("cifar10"),
    "table": table,
    "gate": gate,
    "targets": targets,
    "cifar100": cifar100,
    "judges": judges,
}
# part -> title of its report, and what makes a table of its own
COMPARED: dict[str, tuple[str, Callable[[list[FinishedRun]], str]]] = {
    "table": ("CIFAR-10, one class forgotten", classes),
    "gate": ("The gate of SAFEMax", gates),
    "targets": ("The target of SAFEMax", readings),
    "cifar100": ("CIFAR-100, ten classes forgotten at once", lambda runs: ""),
}
ACTIONS = {"ceiling": ceiling, "collect": collect}


def main() -> None:
    with clear_errors():
        part = sys.argv[1] if len(sys.argv) > 1 else ""
        if part in ACTIONS:
            ACTIONS[part]()
        elif part in PARTS:
            print("\n".join(PARTS[part]()))
        else:
            raise unknown("part", part, [*PARTS, *ACTIONS])


if __name__ == "__main__":
    main()
