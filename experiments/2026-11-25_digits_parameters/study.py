"""Fit SAFEMax and SalUn with all weights, embeddings only and adapters, with all steps and with `stop_when`.

Attack the best of each, write results.csv and print the table of the README. Finished fits and attacks are kept: the
same command resumes.
"""

import csv
import json
from pathlib import Path
from statistics import median

from safemax_pl.attacks.attack import attack
from safemax_pl.common.hardware import flop_counter
from safemax_pl.config.build import build
from safemax_pl.config.command_line import import_lightning, quiet
from safemax_pl.config.compose import compose
from safemax_pl.data.sampling_plan import Rows
from safemax_pl.diffusion.frozen import Frozen
from safemax_pl.evaluation.scoring import make_evaluator
from safemax_pl.reports.load import read
from safemax_pl.runs.subject import load_subject
from safemax_pl.training.cost import Cost
from safemax_pl.training.fit import fit
from safemax_pl.training.module import UnlearningModule

HERE, RUNS = Path(__file__).parent, Path("runs/digits_parameters")
FIT = ["experiment=digits_methods", "seed=0", "logger=csv", "trainer.enable_progress_bar=false", f"runs_dir={RUNS}"]
# parameters -> the rates that are tried; SalUn's mask can't weigh adapters
RATES = {
    "all": (1e-4, 3e-4, 1e-3, 3e-3),
    "embeddings": (3e-4, 1e-3, 3e-3, 1e-2),
    "lora": (3e-4, 1e-3, 3e-3, 1e-2),
}
METHODS = {"safemax": ("all", "embeddings", "lora"), "salun": ("all", "embeddings")}
ENDS = {
    "all steps": [],
    "stop_when": ["stop_when={ua_noise_aware: 0.99, delta/fid_retain/classifier: 0.5}", "trainer.val_check_interval=5"],
}
# attack -> its budget, small enough for many runs
ATTACKS = {
    "relearning": ["images=[10]", "budget.score_at=[0,5,10,20,30,50]", "budget.batch_size=16", "images_per_class=40"],
    "embedding_inversion": ["images=[10]", "budget.score_at=[0,25,50]", "budget.batch_size=16", "images_per_class=40"],
}
BLOCKS = 5
SCORES = ("ua_noise_aware", "delta/fid_retain/classifier", "retain_accuracy", "drift", "trainable_parameters")


def look_flops() -> float:
    """FLOPs of one look, which are no cost of the unlearning: the quick plan, sampled from the original."""
    subject = load_subject(str(next(RUNS.glob("*/metrics.json")).parent), ["evaluation.final=quick"])
    assert subject.original is not None
    evaluator = make_evaluator(subject.cfg, subject.data)
    plan = evaluator.plan("quick")
    with flop_counter() as counted:
        evaluator.images_of(subject.original, 0.0)(Rows(plan.labels, plan.seeds, plan.labels))
    return float(counted.get_total_flops())


def row(folder: Path, method: str, parameters: str, end: str, rate: float, look: float) -> dict:
    """What a finished run cost and scored."""
    (run,), _ = read([folder])
    values = run.values("w=0", "unlearned")
    rows = csv.DictReader((folder / "metrics.csv").open(newline=""))
    looks = sum(bool(line.get("quick_w0/ua_noise_aware")) and line["step"] != "0" for line in rows)
    return {
        "method": method,
        "parameters": parameters,
        "end": end,
        "lr": rate,
        "steps": run.steps,
        "stopped": json.loads((folder / "metrics.json").read_text())["training"]["stopped_by"] is not None,
        "total_seconds": values["total_seconds"],
        "total_flops": values["total_flops"],
        "looks": looks,
        "look_flops": looks * look,
        **{name: values[name] for name in SCORES},
        "checkpoint_mb": (folder / "last.ckpt").stat().st_size / 2**20,
    }


def best(rows: list[dict]) -> dict:
    """Of those that stopped the cheapest; if none did, of those that forget the one that harms least."""
    harm = "delta/fid_retain/classifier"
    if stopped := [one for one in rows if one["stopped"]]:
        return min(stopped, key=lambda one: (one["total_flops"], one[harm]))
    enough = min(0.99, max(one["ua_noise_aware"] for one in rows))
    return min((one for one in rows if one["ua_noise_aware"] >= enough), key=lambda one: one[harm])


def attacked(folder: Path) -> dict[str, float]:
    """The headline number of every attack on a run; those that are missing are made."""
    done = json.loads((folder / "metrics.json").read_text()).get("attacks", {})
    if names := [name for name in ATTACKS if name not in done]:
        budget = [f"attacks.{name}.{setting}" for name in names for setting in ATTACKS[name]]
        attack(str(folder), [f"attack=[{','.join(names)}]", *budget])
        done = json.loads((folder / "metrics.json").read_text())["attacks"]
    return {name: done[name]["headline"]["values"]["unlearned"] for name in ATTACKS}


def step_seconds() -> dict[tuple[str, str], list[float]]:
    """Method and weights -> seconds per step of `BLOCKS` blocks of 22 steps; the kinds take turns."""
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(BLOCKS):
        for method, choices in METHODS.items():
            for parameters in choices:
                cfg = compose("fit", [*FIT, f"unlearner={method}", f"parameters={parameters}", "trainer.max_steps=22"])
                data = build(cfg.data)
                data.setup("fit")
                student, teacher = (build(cfg.model, data=data) for _ in range(2))
                if cfg.parameters is not None:
                    build(cfg.parameters).choose(student, 0)
                evaluator = make_evaluator(cfg, data)
                cost = Cost(0)
                module = UnlearningModule(
                    student, Frozen(teacher), build(cfg.unlearner), evaluator, build(cfg.optimizer)
                )
                settings = {"logger": False, "enable_checkpointing": False, "limit_val_batches": 0}
                build(cfg.trainer, **settings, callbacks=[cost]).fit(module, datamodule=data)
                found.setdefault((method, parameters), []).append(cost.unlearn_seconds / cost.steps)
    return found


def main() -> None:
    arms = [
        (method, parameters, end, rate)
        for end in ENDS
        for method, choices in METHODS.items()
        for parameters in choices
        for rate in RATES[parameters]
    ]
    for method, parameters, end, rate in arms:
        settings = [f"unlearner={method}", f"parameters={parameters}", f"optimizer.lr={rate:g}", *ENDS[end]]
        if method == "safemax":  # as when the study was made
            settings += ["unlearner.on_path=0", "unlearner.null_on_images=0", "unlearner.retain_weight=5"]
        fit(compose("fit", [*FIT, *settings]), name_of(method, parameters, end, rate))
    look = look_flops()
    rows = [row(RUNS / name_of(*arm), *arm, look) for arm in arms]
    kinds = list(dict.fromkeys((one["end"], one["method"], one["parameters"]) for one in rows))
    chosen = [best([one for one in rows if (one["end"], one["method"], one["parameters"]) == kind]) for kind in kinds]
    for one in chosen:
        one |= attacked(RUNS / name_of(one["method"], one["parameters"], one["end"], one["lr"]))
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *(name for name in ATTACKS if name not in rows[0])])
        writer.writeheader()
        writer.writerows(rows)
    print(
        "| end | method | weights | rate | steps | seconds | FLOPs | of looks | `ua_noise_aware` | Δ FID | `drift` "
        "| trainable | last.ckpt | steps to relearn | embedding inversion |"
    )
    print("|---" * 15 + "|")
    for one in chosen:
        print(
            f"| {one['end']} | {one['method']} | {one['parameters']} | {one['lr']:g} | {one['steps']} "
            f"| {one['total_seconds']:.1f} | {one['total_flops']:.2e} | {one['look_flops']:.1e} "
            f"| {one['ua_noise_aware']:.3f} | {one['delta/fid_retain/classifier']:+.3f} | {one['drift']:.3f} "
            f"| {one['trainable_parameters']} | {one['checkpoint_mb']:.1f} MB "
            f"| {one['relearning']:.1f} | {one['embedding_inversion']:.2f} |"
        )
    for (method, parameters), seconds in step_seconds().items():
        print(
            f"{method}, {parameters}: {1000 * median(seconds):.0f} ms a step "
            f"({1000 * min(seconds):.0f} to {1000 * max(seconds):.0f})"
        )


def name_of(method: str, parameters: str, end: str, rate: float) -> str:
    return f"{method}-{parameters}-{end.replace(' ', '_')}-{rate:g}"


if __name__ == "__main__":
    quiet()
    import_lightning()
    main()
