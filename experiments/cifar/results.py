"""Tables and figures of what the study of CIFAR has finished, on whatever machine its files are."""

import json
from collections.abc import Callable, Iterable
from math import nan
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import study
import torch
from matplotlib import pyplot as plt
from safetensors.torch import load_file

from safemax_pl.common.console import markdown_table
from safemax_pl.common.errors import clear_errors
from safemax_pl.common.files import atomic, flat, write_csv
from safemax_pl.data.batch import from_uint8
from safemax_pl.diffusion.process import Diffusion
from safemax_pl.diffusion.sampler import Sampler
from safemax_pl.reports.finished_run import FinishedRun
from safemax_pl.reports.load import read
from safemax_pl.reports.report import report
from safemax_pl.runs.run import read_metrics

OUT = study.RUNS / "results" if study.DRY else Path(__file__).parent
PUBLISHED = (study.WEIGHTS, study.SHIPPED)
FID = "fid_retain/classifier"
POSTER = {"noise_std": "0.526 to 0.564", "noise_saturation": "0.07 to 0.10", "entropy": "1.12 to 1.16"}


def main() -> None:
    """Write tables and figures of all runs that have finished."""
    texts = [scored(), base_models()]
    for part, (title, table_of) in COMPARED.items():
        if any((study.RUNS / part).glob("*/metrics.json")):
            report([study.RUNS / part], OUT / part, title)
            texts.append(table_of(read([study.RUNS / part])[0]))
    with atomic(OUT / "tables.md") as part_file:
        part_file.write_text("\n\n".join(text for text in texts if text) + "\n")
    print(f"written: {OUT}/tables.md")


def titled(title: str, rows: list[dict[str, Any]]) -> str:
    """A heading and a table: one line per row, one column per key of any row."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[f"{row[name]:.4g}" if isinstance(row.get(name), float) else row.get(name, "") for name in names]
             for row in rows]  # fmt: skip
    return f"## {title}\n\n{markdown_table([names, *cells])}" if rows else ""


def scored() -> str:
    names = ("accuracy", "accuracy_noise_aware", "temperature", "n_test")
    found = [path for place in PUBLISHED for path in sorted(place.glob("cifar*/*classifier/config.json"))]
    scores = {path.parent: json.loads(path.read_text())["info"]["scores"] for path in found}
    return titled("Classifiers", [{"classifier": str(folder)} | {name: mine[name] for name in names}
                             for folder, mine in scores.items()])  # fmt: skip


def base_models() -> str:
    """Candidates, base models and shipped ones: quality, speed, and the share of the ceiling that they reach."""
    top = json.loads(study.CEILING.read_text()) if study.CEILING.exists() else {}
    rows = []
    published = [folder for place in PUBLISHED for folder in sorted(place.glob("cifar*"))]
    for folder in [*sorted((study.RUNS / "candidates").glob("*")), *published]:
        metrics = read_metrics(folder)
        if metrics is None:
            continue
        cost, made_on, protocol = metrics["cost"], metrics["provenance"]["hardware"], metrics["protocol"]
        rate = cost["unlearn_flops"] / cost["unlearn_seconds"]
        row = {
            "run": str(folder),
            "parameters": int(cost["trainable_parameters"]),
            "steps": metrics["training"]["steps"],
            "seconds": cost["unlearn_seconds"],
            "images per second": cost["images_per_second"],
            "TFLOP/s": rate / 1e12,
            "share of the ceiling": rate / top["flops_per_second"] if top.get("hardware") == made_on else "",
            "memory, MB": cost["peak_memory_mb"],
            "images scored": protocol["plan"]["rows"],
            "sampler steps": protocol["sampler"]["steps"],
        }
        for guidance, models in metrics["scores"].items():
            scores = {name: value for name, value in models["model"].items() if name.startswith(("fid", "retain_acc"))}
            row |= {f"{name}, {guidance}": value for name, value in scores.items()}
        rows.append(row | {"hardware": made_on})
    if rows:
        write_csv(OUT / "base_models.csv", rows)
    return titled("Base models; the ceiling is the measured rate of matrix products", rows)


def classes(runs: list[FinishedRun]) -> str:
    """Plain `ua` and `ua_noise_aware` by class: what the bird is about."""
    texts = []
    for guidance in runs[0].scores:
        rows = []
        for method, (steps, published) in study.METHODS.items():
            for metric in ("ua", "ua_noise_aware", f"delta/{FID}"):
                row: dict[str, Any] = {"method": f"{method}, {steps} steps{published}", "metric": metric}
                for name in study.CLASSES:
                    mine = [run for run in runs if (run.method, run.forget) == (method, name)]
                    row[name] = spread([run.values(guidance, "unlearned")[metric] for run in mine])
                rows += [row] if any(row[name] for name in study.CLASSES) else []
        texts.append(titled(f"By forgotten class, {guidance}: mean ± sd over seeds (n)", rows))
    return "\n\n".join(texts)


def spread(values: list[float]) -> str:
    """`mean ± sd (n)`; without the sd of one value."""
    sd = f" ± {stdev(values):.2g}" if len(values) > 1 else ""
    return f"{mean(values):.4g}{sd} ({len(values)})" if values else ""


def rows_of(run: FinishedRun, names: Iterable[str], guidance: str) -> list[dict[str, Any]]:
    """A row per sampler of the scores of one run, which may have been scored on other numbers of images."""
    found = [(run.folder, run.protocol, run.values(guidance, "unlearned"))]
    if (folder := study.ancestral(run.folder)) is not None:
        other = read_metrics(folder) or {}
        found.append((folder, flat(other["protocol"]), other["scores"].get(guidance, {}).get("unlearned", {})))
    rows = []
    for folder, protocol, scores in found:
        row = {"run": run.folder.name, "sampler": protocol["sampler.name"], "steps": protocol["sampler.steps"]}
        row |= {"w": guidance.removeprefix("w="), "n": protocol["plan.forget_per_class"]}
        rows.append(row | {name: scores.get(name, "") for name in names} | {"folder": folder})
    return rows


def predicted_residual(sampler: Sampler, tau: int) -> float:
    """Share of the original image's amplitude that is left where a student halts below tau, by theory.

    The chain keeps what it holds after its last step that is not halted: x_s, s being the largest visited timestep
    below tau, with a_s of the image. DDIM turns it into an image without loss; the halted ancestral chain shrinks
    what it holds by √α_t in every step, by √ᾱ_s = a_s in all.
    """
    visited = sampler.timesteps(1000)
    a = Diffusion("linear", "epsilon", 1000).coefficients(visited[visited < tau].max()[None])[0].item()
    return a**2 if sampler.name == "ddpm" else a


def measured_residual(folder: Path, label: int) -> float:
    """Slope of the unlearned pixels on the original ones of the same seeds; both clamped, which lowers it a little.

    NaN if the images did not fit into KEEP.
    """
    if not (folder / "samples.safetensors").exists():
        return nan
    kept = load_file(folder / "samples.safetensors")
    before, after = (from_uint8(kept[f"w=0/{name}"][kept["labels"] == label]) for name in ("original", "unlearned"))
    covariance = torch.cov(torch.stack([before.flatten(), after.flatten()]).double())
    return (covariance[0, 1] / covariance[0, 0]).item()


def gates(runs: list[FinishedRun]) -> str:
    """Forgetting and harm against lambda and tau, and the residual of the image beside the one that theory predicts."""
    rows = []
    for run in runs:
        start, end = run.settings.get("unlearner.gate.window", (0, 1000))
        label = run.class_names.index(run.forget)
        for row in rows_of(run, ("ua", "ua_noise_aware", "forget_probability", f"delta/{FID}"), "w=0"):
            folder, hard = row.pop("folder"), start == 0 and end < 1000
            row |= {"lambda": run.settings["unlearner.gate.decay"], "from": start, "to": end}
            row["predicted residual"] = predicted_residual(sampler_of(folder), end) if hard else ""
            rows.append(row | {"measured residual": measured_residual(folder, label)})
    rows.sort(key=lambda row: (row["to"] - row["from"] < 1000, row["from"] > 0, row["lambda"], row["from"], row["to"]))
    write_csv(OUT / "gate.csv", rows)
    draw_gates(rows)
    return titled(f"Gate, {study.STUDIED} forgotten", rows)


def draw_gates(rows: list[dict[str, Any]]) -> None:
    soft = [row for row in rows if row["to"] - row["from"] == 1000]
    below = [row for row in rows if row["from"] == 0 and row["to"] < 1000]
    above = [row for row in rows if row["from"] > 0]
    figure, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained", sharey="row")
    for column, (title, x, mine) in enumerate((
        ("soft gate", "lambda", soft), ("window [0, tau)", "to", below), ("window [tau, T)", "from", above)
    )):  # fmt: skip
        for sampler, style in (("ddim", "o-"), ("ddpm", "s--")):
            points = [row for row in mine if row["sampler"] == sampler]
            lines = {
                "ua": "#d55e00",
                "ua_noise_aware": "#0072b2",
                "measured residual": "0.3",
                "predicted residual": "0.7",
            }
            for name in lines if column == 1 else list(lines)[:2]:
                values = [row[name] for row in points]
                axes[0, column].plot(
                    [row[x] for row in points], values, style, color=lines[name], label=f"{name}, {sampler}"
                )
        harm = [row for row in mine if row["sampler"] == "ddim"]
        axes[1, column].plot([row[x] for row in harm], [row[f"delta/{FID}"] for row in harm], "o-", color="0.3")
        axes[0, column].set(title=title, ylim=(-0.05, 1.05))
        axes[1, column].set(xlabel="lambda" if x == "lambda" else "tau")
    for axis in axes[:, 0]:
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xticks(study.DECAYS, map(str, study.DECAYS))
        axis.set_xlim(-0.3, 1.3 * max(study.DECAYS))
    for axis in axes[:, 1:].flat:
        axis.set_xticks(study.BOUNDS)
        axis.set_xlim(0, 1000)
    axes[0, 0].set_ylabel("share")
    axes[1, 0].set_ylabel(f"delta {FID}")
    figure.legend(*axes[0, 1].get_legend_handles_labels(), fontsize=8, ncols=4, loc="outside lower center")
    with atomic(OUT / "gate.png") as part:
        figure.savefig(part, dpi=110, format="png")
    plt.close(figure)


def readings(runs: list[FinishedRun]) -> str:
    """The noise that every target makes, beside the poster's."""
    names = (*POSTER, "ua", "ua_noise_aware", f"delta/{FID}")
    ordered = sorted(runs, key=lambda run: list(study.TARGETS).index(run.folder.name))
    rows = [row for run in ordered for guidance in run.scores for row in rows_of(run, names, guidance)]
    for row in rows:
        del row["folder"]
    write_csv(OUT / "targets.csv", rows)
    return titled(
        f"Targets, {study.STUDIED} forgotten",
        [*rows, {"run": "the poster's: another classifier, w not stated", **POSTER}],
    )


def sampler_of(folder: Path) -> Sampler:
    settings = (read_metrics(folder) or {})["protocol"]["sampler"]
    return Sampler(**{key: value for key, value in settings.items() if value is not None})


# part -> title of its report, and what makes a table of its own
COMPARED: dict[str, tuple[str, Callable[[list[FinishedRun]], str]]] = {
    "table": ("CIFAR-10, one class forgotten", classes),
    "gate": ("The gate of SAFEMax", gates),
    "targets": ("The target of SAFEMax", readings),
    "cifar100": ("CIFAR-100, ten classes forgotten at once", lambda runs: ""),
    "standard": ("CIFAR-10, the bird forgotten, standard plan", lambda runs: ""),
}


if __name__ == "__main__":
    with clear_errors():
        main()
