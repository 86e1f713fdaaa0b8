"""Put the model or the classifier of a finished run where it is shipped: in half precision, with a model card.

Usage:
  python -m safemax_pl.publish runs/cifar10_pretrain weights/cifar10
  python -m safemax_pl.publish runs/cifar10_classifier weights/cifar10/classifier
  python -m safemax_pl.publish runs/digits_pretrain weights/digits --precision float32

A model becomes unet/, scheduler/, data.json, metrics.json and the pictures; a classifier model.safetensors and
config.json. Matrices are rounded, vectors are not, and both load as float32. README.md, the model card, is written
last; one that was written by hand is left as it is. Weights above the limit are refused.
"""

import argparse
import json
import shutil
from math import isnan
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from safemax_pl.config import load_config, without_locations
from safemax_pl.diffusion import Diffusion
from safemax_pl.errors import UserError, clear_errors
from safemax_pl.files import atomic, file_digest, write_json
from safemax_pl.networks import Model, weights_digest
from safemax_pl.runs import read_metrics

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
LIMITS = {"unet": 45.0, "classifier": 15.0}  # MB of weights that a repository should hold, 10⁶ bytes each
FILES = {"unet": "diffusion_pytorch_model.safetensors", "classifier": "model.safetensors"}
PICTURES = ("samples.png", "curves.png")
MARK = "<!-- written by safemax_pl.publish, which replaces it -->\n"
LICENCES = {
    "digits": "CC BY 4.0 (optical recognition of handwritten digits, UCI)",
    **dict.fromkeys(("cifar10", "cifar100"), "none stated by its author; cite Krizhevsky, 2009"),
}


def publish(run: Path, folder: Path, precision: str = "float16", most: float | None = None) -> Path:
    """Write what `run` has made into `folder`, and return that.

    Args:
        run: a finished run of fit or fit_classifier.
        folder: what it had of an earlier publication is replaced.
        precision: of the matrices: float16, bfloat16 or float32.
        most: MB that the weights may have; None for `LIMITS`.

    Raises:
        UserError: when the run is unfinished, or its weights are too large for the limit or the precision.
    """
    part = next((part for part in FILES if (run / part / FILES[part]).exists()), None)
    metrics = read_metrics(run)
    if part is None or metrics is None or not (run / "config.yaml").exists():
        raise UserError(
            f"{run} is no finished run (it needs config.yaml, metrics.json, and unet/ or classifier/): give the folder "
            "of one, or run its command again to finish it"
        )
    tensors = rounded(load_file(run / part / FILES[part]), precision)
    size = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
    limit = LIMITS[part] if most is None else most
    if size > limit:
        raise UserError(
            f"the weights of {run} have {size:.1f} MB in {precision}, and {limit:g} MB are legal: train a smaller "
            "network, or give a higher --most"
        )
    metrics = _on_any_machine(metrics)
    cfg = load_config(run / "config.yaml")
    card = folder / "README.md"
    by_hand = card.exists() and not card.read_text().startswith(MARK)
    kept = card.read_text() if by_hand else None
    if part == "unet":
        if not by_hand:
            card.unlink(missing_ok=True)  # until all is there
        _write_model(run, folder, tensors)
        metrics["published"] = {"precision": precision, "weights": _digest(folder)}
        write_json(folder / "metrics.json", metrics)
        if not by_hand:
            with atomic(card) as scratch:
                scratch.write_text(model_card(cfg, metrics, tensors, folder))
    else:
        with atomic(folder) as scratch:
            scratch.mkdir()
            config = json.loads((run / part / "config.json").read_text())
            config["info"] = metrics | {"published": {"precision": precision}}
            (scratch / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            save_file(tensors, scratch / FILES[part])
            digest = file_digest(scratch / FILES[part])
            text = classifier_card(cfg, config, tensors, precision, digest, folder)
            (scratch / "README.md").write_text(text if kept is None else kept)
    print(f"written: {folder}, {size:.1f} MB of weights in {precision}")
    if by_hand:
        print(f"{card} was written by hand and is left as it is: see that its numbers are those of the new weights")
    return folder


def rounded(tensors: dict[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Matrices and convolutions in `precision`; biases, norms and their statistics, which are few, as they are."""
    dtype = PRECISIONS[precision]
    found = {
        name: tensor.to(dtype) if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        for name, tensor in tensors.items()
    }
    if broken := [name for name, tensor in found.items() if not torch.isfinite(tensor).all()]:
        raise UserError(f"{broken[0]} is not finite in {precision}: give --precision bfloat16 or float32")
    return found


def _on_any_machine(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics without the names of machines and folders."""
    made = metrics["provenance"] | {"command": without_locations(metrics["provenance"]["command"])}
    return {key: value for key, value in metrics.items() if key != "ranks"} | {"provenance": made}


def _write_model(run: Path, folder: Path, tensors: dict[str, Tensor]) -> None:
    with atomic(folder / "unet") as part:
        part.mkdir()
        shutil.copy(run / "unet/config.json", part)
        save_file(tensors, part / FILES["unet"], {"format": "pt"})
    with atomic(folder / "scheduler") as part:
        shutil.copytree(run / "scheduler", part)
    for name in ("data.json", *PICTURES):
        if (run / name).exists():
            with atomic(folder / name) as part:
                shutil.copy(run / name, part)
        else:
            (folder / name).unlink(missing_ok=True)


def _digest(folder: Path) -> str:
    """Names the published network, as runs that start from it will."""
    classes = len(json.loads((folder / "data.json").read_text())["class_names"])
    unet = UNet2DModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    return weights_digest(Model(unet, Diffusion.from_scheduler(scheduler), classes))


# -- model cards -------------------------------------------------------------------------------------------------------


def model_card(cfg: DictConfig, metrics: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> str:
    """The card of a diffusion model, as Markdown."""
    scores = {guidance: models.get("unlearned") or models["model"] for guidance, models in metrics["scores"].items()}
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
    data = json.loads((folder / "data.json").read_text())
    forgotten = protocol["forget_classes"]
    facts = {
        "data": f"{data['name']}, training split, {len(data['class_names'])} classes"
        + (f", but {', '.join(forgotten)}" if forgotten else "")
        + f"; fingerprint {data['fingerprint']}",
        "network": f"diffusers' UNet2DModel, {_parameters(tensors)}, class-conditional, loads as float32",
        "process": ", ".join(
            f"{key}={value}"
            for key, value in json.loads((folder / "scheduler/scheduler_config.json").read_text()).items()
            if key in ("num_train_timesteps", "beta_schedule", "prediction_type")
        ),
        "recipe": _recipe(cfg, metrics["training"]["steps"], cfg.data.retain_batch_size) + f", {protocol['precision']}",
        "seed": cfg.seed,
        "cost": f"{cost['unlearn_seconds']:.0f} s of training, {cost['images_per_second']:.0f} images/s, "
        f"{cost['unlearn_flops']:.3g} FLOPs; {_made_on(metrics)}",
        "weights": f"matrices in {published['precision']}, hash {published['weights']}",
        "licence": _licence(data["name"]),
    }
    lines = [
        f"{MARK}# {data['name']}: diffusion model",
        _table([["", ""], *map(list, facts.items())]),
        _command(metrics),
        f"Scores of the weights before rounding: {sampler['name']}, {sampler['steps']} steps, η = {sampler['eta']}, "
        f"clip_sample = {sampler['clip_sample']}, {plan['rows']} images, classifier {protocol['classifier']['hash']} "
        f"(test accuracy {_number(protocol['classifier']['accuracy'])}). All of the protocol: metrics.json.",
        _table(table),
        "Accuracy of the images of each class, by the classifier:",
        _table(accuracies),
        *(f"![{name.removesuffix('.png')}]({name})" for name in PICTURES if (folder / name).exists()),
    ]
    return "\n\n".join(lines) + "\n"


def classifier_card(
    cfg: DictConfig, config: dict[str, Any], tensors: dict[str, Tensor], precision: str, digest: str, folder: Path
) -> str:
    """The card of a classifier, as Markdown; `config` is the content of its config.json."""
    info, scores = config["info"], config["info"]["scores"]
    facts = {
        "data": f"{cfg.data.name}, training split less {cfg.data.calibration_fraction:.0%} for the temperature, "
        f"{len(config['class_names'])} classes; fingerprint {info['data']}",
        "networks": f"two of the same kind, with and without a class for noise: {config['architecture']}, together "
        f"{_parameters(tensors)}",
        "recipe": _recipe(cfg, cfg.trainer.max_steps, cfg.batch_size) + f", shifts of {cfg.shift} pixels",
        "seed": cfg.seed,
        "made on": _made_on(info),
        "weights": f"matrices in {precision}, hash {digest}",
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
        f"{MARK}# {cfg.data.name}: {folder.name.replace('_', ' ')}",
        _table([["", ""], *map(list, facts.items())]),
        _command(info),
        "All scores are of the weights before rounding. What it says of noise:",
        _table(noise),
    ]
    return "\n\n".join(lines) + "\n"


def _recipe(cfg: DictConfig, steps: int, batch: int) -> str:
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
    return f"Made, and made again, by\n\n```bash\n{metrics['provenance']['command']}\n```"


def _licence(name: str) -> str:
    return f"Apache-2.0, as the code; of the data: {LICENCES.get(name, 'see where they come from')}"


def _parameters(tensors: dict[str, Tensor]) -> str:
    size = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
    return f"{sum(tensor.numel() for tensor in tensors.values()) / 1e6:.2f} M numbers, {size:.1f} MB"


def _number(value: float | None) -> str:
    return "" if value is None or isnan(value) else f"{value:.4g}"


def _table(rows: list[list[Any]]) -> str:
    head, *body = (f"| {' | '.join(map(str, row))} |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m safemax_pl.publish", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("folder", type=Path, help="where to, such as weights/cifar10")
    parser.add_argument("--precision", choices=PRECISIONS, default="float16", help="of the matrices (float16)")
    parser.add_argument("--most", type=float, metavar="MB", help="limit of the weights (a model 45, a classifier 15)")
    arguments = parser.parse_args()
    with clear_errors():
        publish(arguments.run, arguments.folder, arguments.precision, arguments.most)


if __name__ == "__main__":
    main()
