"""Renamed targets and keys, so that configurations and results of earlier versions stay readable."""

from typing import Any

# module of 0.4.0 -> module now
MODULES = {
    "safemax_pl.architectures": "safemax_pl.classifier.architectures",
    "safemax_pl.data": "safemax_pl.data.datamodule",
    "safemax_pl.gates": "safemax_pl.unlearners.safemax_gate",
    "safemax_pl.loggers": "safemax_pl.runs.forgiving_wandb",
    "safemax_pl.parameters": "safemax_pl.diffusion.trainable",
    "safemax_pl.sampler": "safemax_pl.diffusion.sampler",
    "safemax_pl.targets": "safemax_pl.unlearners.safemax_target",
}
TARGETS = {
    "safemax_pl.networks.fresh": "safemax_pl.diffusion.unet.fresh",
    "safemax_pl.networks.pretrained": "safemax_pl.diffusion.saved_model.pretrained",
}
# key of metrics.json before 0.5.0 -> key now, at any depth
METRICS = {
    "judges": "classifiers",
    "judge_disagreement": "classifier_disagreement",
    "prior_seconds": "preparation_seconds",
    "prior_flops": "preparation_flops",
}


def present_target(target: Any) -> Any:
    """Return the present name of a `_target_`; values that were not renamed are returned unchanged."""
    if not isinstance(target, str):
        return target
    module, _, name = target.rpartition(".")
    return TARGETS.get(target) or (f"{MODULES[module]}.{name}" if module in MODULES else target)


def present_metrics(content: Any) -> Any:
    """Return the content of a metrics.json with the present names of its keys."""
    if isinstance(content, dict):
        return {METRICS.get(key, key): present_metrics(value) for key, value in content.items()}
    return [present_metrics(value) for value in content] if isinstance(content, list) else content
