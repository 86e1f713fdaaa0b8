"""Model cards: contents, recipe and scores of a published folder, as Markdown with the front matter of the Hub."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from markupsafe import Markup
from omegaconf import DictConfig
from torch import Tensor

from safemax_pl.classifier.accuracy import sentence
from safemax_pl.common.escaping import markdown, printable
from safemax_pl.common.network_limits import MAX_WEIGHTS
from safemax_pl.common.templates import environment, line
from safemax_pl.common.untrusted import read_json, read_tensors
from safemax_pl.config.saved import check_config, read_config
from safemax_pl.runs.run import read_metrics

MARK = "<!-- written by safemax_pl.publish, which replaces it -->\n"
PICTURES = ("samples.png", "curves.png")
LICENCES = {
    "digits": "CC BY 4.0 (optical recognition of handwritten digits, UCI)",
    **dict.fromkeys(("cifar10", "cifar100"), "none stated by its author; cite Krizhevsky, 2009"),
}
SCORED = {True: "Scores of these very weights", False: "Scores of the weights before rounding"}
Table = list[list[Any]]


def model_card(folder: Path) -> str:
    """Return the card of the diffusion model in `folder`."""
    cfg, metrics, data = _config(folder), read_metrics(folder) or {}, read_json(folder / "data.json")
    scores: dict[str, dict[str, Any]] = {}
    for guidance, models in metrics["scores"].items():
        scores[guidance] = models.get("unlearned") or models["model"]
        if "unlearned" in models:
            scores[f"{guidance}, original"] = models["original"]
    first = next(iter(scores.values()))
    names = [name for name in first if name != "per_class"]
    of_classes = {which: by["per_class"].get("retain_accuracy", {}) for which, by in scores.items()}
    classes = list(next(iter(of_classes.values())))
    tables = {
        _conditions(metrics): [
            ["", *scores],
            *([name, *(_number(by.get(name)) for by in scores.values())] for name in names),
        ],
        "Accuracy of the images of each class, by the classifier:": [
            ["class", *scores],
            *([name, *(_number(by[name]) for by in of_classes.values())] for name in classes),
        ],
    }
    forgotten = metrics["protocol"]["forget_classes"]
    return _card(
        f"{data['name']}: diffusion model",
        _front_matter(data["name"], "diffusers", names, ["diffusion", *["machine-unlearning"] * bool(forgotten)]),
        facts=_facts_of_model(folder, cfg, metrics, data),
        command=metrics["provenance"]["command"],
        tables=tables,
        pictures=[name for name in PICTURES if (folder / name).exists()],
    )


def _facts_of_model(folder: Path, cfg: DictConfig, metrics: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    protocol, cost, published, training = (metrics[key] for key in ("protocol", "cost", "published", "training"))
    tensors = read_tensors(folder / "unet/diffusion_pytorch_model.safetensors", MAX_WEIGHTS)
    process = read_json(folder / "scheduler/scheduler_config.json")
    forgotten = ", ".join(protocol["forget_classes"])
    never_seen = forgotten and cfg.unlearner.get("from_scratch") is True
    but = f", but {forgotten}" if never_seen else ""
    was = f"{forgotten}, from the weights {metrics['weights']['original']}, by {training.get('method')}"
    return {
        "data": f"{data['name']}, training split, {len(data['class_names'])} classes{but}; fingerprint "
        f"{data['fingerprint']}",
        **({"unlearned": was} if forgotten and not never_seen else {}),
        "network": f"diffusers' UNet2DModel, {_parameters(tensors)}, class-conditional, loads as float32",
        "process": ", ".join(
            f"{key}={value}"
            for key, value in process.items()
            if key in ("num_train_timesteps", "beta_schedule", "prediction_type")
        ),
        "recipe": _recipe(cfg, training["steps"], _batch(cfg, training)) + f", {protocol['precision']}",
        "seed": cfg.seed,
        "cost": f"{cost['unlearn_seconds']:.0f} s of training, {cost['images_per_second']:.0f} images/s, "
        f"{cost['unlearn_flops']:.3g} FLOPs; {_made_on(metrics)}",
        "weights": f"matrices in {published['precision']}, hash {published['weights']}",
        "licence": _licence(data["name"]),
    }


def _conditions(metrics: dict[str, Any]) -> str:
    """Return under which protocol the scores were measured, as a caption."""
    protocol = metrics["protocol"]
    sampler, classifiers = protocol["sampler"], metrics.get("classifiers")  # runs before 0.5.0 have no accuracies
    return (
        f"{SCORED[metrics['published']['scored']]}: {sampler['name']}, {sampler['steps']} steps, η = {sampler['eta']}, "
        f"clip_sample = {sampler['clip_sample']}, {protocol['plan']['rows']} images, classifier "
        f"{protocol['classifier']['hash']}{f' ({sentence(classifiers)})' if classifiers else ''}. The whole protocol: "
        "metrics.json."
    )


def classifier_card(folder: Path) -> str:
    """Return the card of the classifier in `folder`."""
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
    keys = ("noise_rate", "plain_favourite", "plain_favourite_share")
    noise: Table = [["noise", "called noise", "the other network's favourite", "its share"]]
    noise += [
        [f"{kind} ({said['group']})", *(_number(said[key]) for key in keys)] for kind, said in scores["noise"].items()
    ]
    return _card(
        f"{cfg.data.name}: {folder.name.replace('_', ' ')}",
        _front_matter(cfg.data.name, "safemax_pl", ["accuracy"], ["image-classification"]),
        facts=facts,
        command=info["provenance"]["command"],
        tables={"All scores are of the weights before rounding. Answers of both networks to noise:": noise},
        pictures=[],
    )


def _front_matter(data: str, library: str, metrics: list[str], tags: list[str]) -> ModelCardData:
    """Return the metadata by which the Hub lists a model."""
    names = [printable(name) for name in metrics]
    return ModelCardData(
        license="apache-2.0", library_name=library, tags=tags, datasets=[printable(data)], metrics=names
    )


def _card(title: str, front_matter: ModelCardData, **values: Any) -> str:
    """Render a card; nothing is sent or fetched."""
    template = environment("runs", markdown, line=line, fenced=_fenced).get_template("model_card.md.j2")
    body = MARK + template.render(title=title, **values)
    return str(ModelCard.from_template(front_matter, template_str="---\n{{ card_data }}\n---\n{{ body }}", body=body))


def _fenced(command: str) -> Markup:
    """Return a command as a code block, with a fence that is longer than any in it."""
    text = printable(command)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return Markup(f"{fence}bash\n{text}\n{fence}")


def _batch(cfg: DictConfig, training: dict[str, Any]) -> str:
    """Return the images of a step; runs before 0.5.0 state only what was configured."""
    sizes = training.get("batch_sizes") or {"forget": 0, "retain": cfg.data.retain_batch_size}
    kinds = {kind: size for kind, size in sizes.items() if size}
    return " and ".join(f"{size} {kind}" if len(kinds) > 1 else str(size) for kind, size in kinds.items())


def _recipe(cfg: DictConfig, steps: int, batch: str) -> str:
    """Return steps, batch, optimiser and the other settings that decide a fit."""
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


def _config(folder: Path) -> DictConfig:
    """Read the configuration in a folder, and check that it may be resolved."""
    path = folder / "config.yaml"
    cfg = read_config(path)
    check_config(cfg, path, instantiate=False)
    return cfg


def _licence(name: str) -> str:
    return f"Apache-2.0, as the code; of the data: {LICENCES.get(name, 'see its source')}"


def _parameters(tensors: dict[str, Tensor]) -> str:
    size = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
    return f"{sum(tensor.numel() for tensor in tensors.values()) / 1e6:.2f} M numbers, {size:.1f} MB"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
