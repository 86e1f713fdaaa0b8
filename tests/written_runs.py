"""Runs and attacks written by hand for the tests of the report: every number is known."""

import copy
import csv
import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

PROTOCOL = {
    "version": 2,
    "plan": {"name": "standard", "rows": 40, "forget_per_class": 4, "retain_total": 36},
    "sampler": {"name": "ddim", "steps": 25},
    "guidance": [0.0],
    "forget_classes": ["3"],
    "data": {"name": "digits", "fingerprint": "abc"},
    "reference": {"split": "train", "n": 1292},
    "classifier": {"hash": "classifier"},
    "torch": "2.13.0+cpu",
    "device": "cpu",
}
ORIGINAL = {"ua": 0.0, "ua_noise_aware": 0.0, "noise_rate": 0.0, "retain_accuracy": 0.99, "fid_retain/classifier": 1.0}
NOISE = {"ua": 0.8, "ua_noise_aware": 1.0, "noise_rate": 1.0, "retain_accuracy": 0.1, "fid_retain/classifier": 90.0}
COST = {"unlearn_seconds": 10.0, "preparation_seconds": 0.5, "unlearn_flops": 1e12, "preparation_flops": 5e11}
COST |= {"peak_memory_mb": 512.0}


def with_classes(scores: dict[str, float], forget: str) -> dict[str, Any]:
    retained = {name: scores["retain_accuracy"] for name in "0123456789" if name not in forget}
    per_class = {"ua_noise_aware": dict.fromkeys(forget.split("+"), scores["ua_noise_aware"])}
    return scores | {"per_class": per_class | {"retain_accuracy": retained}}


def write_run(
    runs: Path,
    method: str = "safemax",
    seed: int = 0,
    forget: str = "3",
    scores: dict[str, float] | None = None,
    cost: dict[str, float] | None = None,
    protocol: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    hardware: str = "CPU, 1 threads",
    name: str | None = None,
    guidance: tuple[int, ...] = (0,),
    commit: str | None = "c0ffee",
    weights: str = "raw",
    classifiers: dict[str, dict[str, float]] | None = None,
    from_scratch: bool = False,
) -> Path:
    """Write a finished run into a folder; `scores` and `cost` change single values, `protocol` a dotted key."""
    name = name or f"{method}-{seed}-{forget}"
    folder = runs / name
    folder.mkdir(parents=True)
    unlearned = ORIGINAL | {"ua": 0.9, "ua_noise_aware": 1.0, "noise_rate": 1.0, "drift": 0.1} | (scores or {})
    models = {"original": ORIGINAL, "unlearned": unlearned, "normal_noise": NOISE, "uniform_noise": NOISE}
    models = {which: with_classes(values, forget) for which, values in models.items()}
    tree = copy.deepcopy(PROTOCOL) | {"forget_classes": forget.split("+")}
    for key, value in (protocol or {}).items():
        node, _, leaf = key.rpartition(".")
        (tree[node] if node else tree)[leaf] = value
    metrics = {
        "protocol": tree,
        "weights": {"original": "aaa", "unlearned": name},
        "classifiers": classifiers or {},
        "scores": {f"w={w}": models for w in guidance},
        "name": name,
        "cost": COST | (cost or {}),
        "training": {"method": method, "unlearner": "SAFEMax", "seed": seed, "max_steps": 4, "weights": weights},
        "provenance": {
            "command": f"python -m safemax_pl.fit name={name}",
            "commit": commit,
            "hardware": hardware,
        },
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "data.json").write_text(json.dumps({"name": "digits", "class_names": list("0123456789")}))
    config: dict[str, Any] = {"name": name, "runs_dir": "runs", "seed": seed, "unlearner": {"x": method}}
    config["unlearner"] |= {"from_scratch": from_scratch}
    config |= {"optimizer": {"_target_": "torch.optim.Adam", "lr": 2e-4}, "gradient_clip": None}
    config["data"] = {"name": "digits", "forget_batch_size": 16, "retain_batch_size": 32}
    config["data"]["forget_classes"] = [int(c) for c in forget.split("+")]
    OmegaConf.save(OmegaConf.merge(config, settings or {}), folder / "config.yaml")
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "unlearn_seconds", "quick_w0/ua_noise_aware", "quick_w0/fid_retain/classifier"])
        writer.writerows([[0, "", 0.0, 1.0], [1, "", "", ""], [2, 5.0 + seed, 0.5, 2.0], [4, 10.0 + seed, 1.0, 3.0]])
    labels = torch.arange(10).repeat_interleave(4)
    level = (labels * 20 + 20).to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
    images = {f"w={w}/{model}": level.clone() for w in guidance for model in ("original", "unlearned")}
    save_file({"labels": labels, "seeds": torch.arange(4).repeat(10), **images}, folder / "samples.safetensors")
    return folder


def write_attack(
    folder: Path,
    name: str = "late_start",
    value: float = 0.8,
    original: float = 0.0,
    limit: float | None = None,
    better: str = "higher",
    controls: dict[str, float] | None = None,
    retrain: tuple[str, float] | None = None,
    protocol: dict[str, Any] | None = None,
    series: tuple[str, ...] = ("test images",),
    xs: tuple[float, ...] = (0.2, 0.5, 0.8),
) -> None:
    """Put the block of an attack into the metrics.json of a run of `write_run`, and write its images.

    The curves of a model are `min(its number, 1)` at every x; `retrain` is a digest of weights and a number.
    """
    metrics = json.loads((folder / "metrics.json").read_text())
    values = {"unlearned": value, "original": original}
    weights = {"unlearned": metrics["weights"]["unlearned"], "original": "aaa"}
    if retrain:
        weights["retrain"], values["retrain"] = retrain
    kept = ("version", "sampler", "forget_classes", "data", "classifier", "torch", "device")
    ours = {key: metrics["protocol"][key] for key in kept}
    tree = {"attack": {"name": name.title(), "version": 1, "images_per_class": 10}, "original": "aaa"} | ours
    for key, changed in (protocol or {}).items():
        node, _, leaf = key.rpartition(".")
        (tree[node] if node else tree)[leaf] = changed
    where = f"attacks/{name}-{len(metrics.get('attacks', {}))}"
    block = {
        "title": name.replace("_", " ").capitalize(),
        "headline": {"name": "a number", "better": better, "limit": limit, "values": values | (controls or {})},
        "axis": "t_0 / T",
        "measure": "ua_noise_aware",
        "curves": {model: {one: [[x, min(values[model], 1.0)] for x in xs] for one in series} for model in weights},
        "protocol": tree,
        "weights": weights,
        "classifiers": metrics["classifiers"],
        "seconds": 1.0,
        "provenance": metrics["provenance"] | {"command": f"python -m safemax_pl.attack {name}"},
        "folder": where,
    }
    (folder / where).mkdir(parents=True)
    grey = {"unlearned": 40, "original": 200, "retrain": 120}
    images = {model: torch.full((8, 1, 8, 8), grey[model], dtype=torch.uint8) for model in weights}
    save_file(images, folder / where / "images.safetensors")
    metrics.setdefault("attacks", {})[name] = block
    (folder / "metrics.json").write_text(json.dumps(metrics))
