"""Model cards: what a published folder holds, how it was made and what it scores, as Markdown."""

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from safemax_pl.classifier.accuracy import sentence
from safemax_pl.common.console import markdown_table
from safemax_pl.common.escaping import markdown, printable
from safemax_pl.common.network_limits import MAX_WEIGHTS
from safemax_pl.common.untrusted import read_json, read_tensors
from safemax_pl.config.saved import check_config, read_config

MARK = "<!-- written by safemax_pl.publish, which replaces it -->\n"
PICTURES = ("samples.png", "curves.png")
LICENCES = {
    "digits": "CC BY 4.0 (optical recognition of handwritten digits, UCI)",
    **dict.fromkeys(("cifar10", "cifar100"), "none stated by its author; cite Krizhevsky, 2009"),
}
SCORED = {True: "Scores of these very weights", False: "Scores of the weights before rounding"}


def model_card(folder: Path) -> str:
    """The card of the diffusion model in `folder`."""
    tensors = read_tensors(folder / "unet/diffusion_pytorch_model.safetensors", MAX_WEIGHTS)
    cfg, metrics = _config(folder), read_json(folder / "metrics.json")
    scores = {}
    for guidance, models in metrics["scores"].items():
        scores[guidance] = models.get("unlearned") or models["model"]
        if "unlearned" in models:
            scores[f"{guidance}, original"] = models["original"]
    first = next(iter(scores.values()))
    names = [name for name in first if name != "per_class"]
    table = [["", *scores], *([name, *(_number(by.get(name)) for by in scores.values())] for name in names)]
    classes = list(first["per_class"].get("retain_accuracy", {}))
    accuracies = [
        ["class", *scores],
        *([name, *(_number(by["per_class"]["retain_accuracy"][name]) for by in scores.values())] for name in classes),
    ]
    protocol, cost, published = metrics["protocol"], metrics["cost"], metrics["published"]
    sampler, plan = protocol["sampler"], protocol["plan"]
    data = read_json(folder / "data.json")
    forgotten, training = ", ".join(protocol["forget_classes"]), metrics["training"]
    never_seen = forgotten and cfg.unlearner.get("from_scratch") is True
    was = f"{forgotten}, from the weights {metrics['weights']['original']}, by {training.get('method')}"
    facts = {
        "data": f"{data['name']}, training split, {len(data['class_names'])} classes"
        + (f", but {forgotten}" if never_seen else "")
        + f"; fingerprint {data['fingerprint']}",
        **({"unlearned": was} if forgotten and not never_seen else {}),
        "network": f"diffusers' UNet2DModel, {_parameters(tensors)}, class-conditional, loads as float32",
        "process": ", ".join(
            f"{key}={value}"
            for key, value in read_json(folder / "scheduler/scheduler_config.json").items()
            if key in ("num_train_timesteps", "beta_schedule", "prediction_type")
        ),
        "recipe": _recipe(cfg, training["steps"], _batch(cfg, training)) + f", {protocol['precision']}",
        "seed": cfg.seed,
        "cost": f"{cost['unlearn_seconds']:.0f} s of training, {cost['images_per_second']:.0f} images/s, "
        f"{cost['unlearn_flops']:.3g} FLOPs; {_made_on(metrics)}",
        "weights": f"matrices in {published['precision']}, hash {published['weights']}",
        "licence": _licence(data["name"]),
    }
    lines = [
        f"{MARK}# {markdown(data['name'])}: diffusion model",
        _table([["", ""], *map(list, facts.items())]),
        _command(metrics),
        markdown(
            f"{SCORED[published['scored']]}: {sampler['name']}, {sampler['steps']} steps, η = {sampler['eta']}, "
            f"clip_sample = {sampler['clip_sample']}, {plan['rows']} images, classifier "
            f"{protocol['classifier']['hash']}{_scored(metrics)}. All of the protocol: metrics.json."
        ),
        _table(table),
        "Accuracy of the images of each class, by the classifier:",
        _table(accuracies),
        *(f"![{name.removesuffix('.png')}]({name})" for name in PICTURES if (folder / name).exists()),
    ]
    return "\n\n".join(lines) + "\n"


def classifier_card(folder: Path) -> str:
    """The card of the classifier in `folder`."""
    cfg, tensors = _config(folder), read_tensors(folder / "model.safetensors", MAX_WEIGHTS)
    config = read_json(folder / "config.json")
    info, scores = config["info"], config["info"]["scores"]
    facts = {
        "data": f"{cfg.data.name}, training split less {cfg.data.calibration_fraction:.0%} for the temperature, "
        f"{len(config['class_names'])} classes; fingerprint {info['data']}",
        "networks": f"two of the same kind, with and without a class for noise: {config['architecture']}, together "
        f"{_parameters(tensors)}",
        "recipe": _recipe(cfg, cfg.trainer.max_steps, str(cfg.batch_size)) + f", shifts of {cfg.shift} pixels",
        "seed": cfg.seed,
        "made on": _made_on(info),
        "weights": f"matrices in {info['published']['precision']}, hash {info['published']['weights']}",
        "licence": _licence(cfg.data.name),
        "test accuracy": f"{_number(scores['accuracy'])}; {_number(scores['accuracy_noise_aware'])} with the class for "
        f"noise (n = {scores['n_test']}, temperature {scores['temperature']:.2f})",
    }
    noise = [
        ["noise", "called noise", "the other network's favourite", "its share"],
        *(
            [
                f"{kind} ({said['group']})",
                _number(said["noise_rate"]),
                said["plain_favourite"],
                _number(said["plain_favourite_share"]),
            ]
            for kind, said in scores["noise"].items()
        ),
    ]
    lines = [
        f"{MARK}# {markdown(cfg.data.name)}: {markdown(folder.name.replace('_', ' '))}",
        _table([["", ""], *map(list, facts.items())]),
        _command(info),
        "All scores are of the weights before rounding. What it says of noise:",
        _table(noise),
    ]
    return "\n\n".join(lines) + "\n"


def _batch(cfg: DictConfig, training: dict[str, Any]) -> str:
    """Images of a step; runs before 0.5.0 say only what was configured."""
    sizes = training.get("batch_sizes") or {"forget": 0, "retain": cfg.data.retain_batch_size}
    kinds = {kind: size for kind, size in sizes.items() if size}
    return " and ".join(f"{size} {kind}" if len(kinds) > 1 else str(size) for kind, size in kinds.items())


def _recipe(cfg: DictConfig, steps: int, batch: str) -> str:
    """Steps, batch, optimiser and what else decides a fit."""
    schedule, average = cfg.get("lr_scheduler"), cfg.get("ema_decay")
    parts = [
        f"{steps} steps of {batch} images",
        f"{cfg.optimizer['_target_'].rpartition('.')[2]} {cfg.optimizer.lr:g}",
        *([schedule["_target_"].rpartition(".")[2]] if schedule else []),
        *([f"weights averaged with decay {average:g}"] if average is not None else []),
        *(["mirrored images"] if cfg.data.flip else []),
    ]
    return ", ".join(parts)


def _made_on(metrics: dict[str, Any]) -> str:
    made = metrics["provenance"]
    return f"{made['hardware']}, torch {made['torch']}, safemax_pl {made['safemax_pl']}, commit {made['commit']}"


def _command(metrics: dict[str, Any]) -> str:
    command = printable(metrics["provenance"]["command"])
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", command)), default=0))
    return f"Made, and made again, by\n\n{fence}bash\n{command}\n{fence}"


def _config(folder: Path) -> DictConfig:
    """The configuration that a folder holds, which may be resolved."""
    path = folder / "config.yaml"
    cfg = read_config(path)
    check_config(cfg, path, instantiate=False)
    return cfg


def _table(rows: list[list[Any]]) -> str:
    """A Markdown table of texts."""
    return markdown_table([[markdown(cell) for cell in row] for row in rows])


def _licence(name: str) -> str:
    return f"Apache-2.0, as the code; of the data: {LICENCES.get(name, 'see where they come from')}"


def _parameters(tensors: dict[str, Tensor]) -> str:
    size = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
    return f"{sum(tensor.numel() for tensor in tensors.values()) / 1e6:.2f} M numbers, {size:.1f} MB"


def _scored(metrics: dict[str, Any]) -> str:
    """How well the classifiers recognise real images; runs before 0.5.0 don't say."""
    return f" ({sentence(metrics['classifiers'])})" if metrics.get("classifiers") else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
