"""Renamed targets and keys, so that configurations and results of earlier versions stay readable."""

from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from safemax_pl.common.files import dotted, leaves

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


SAFEMAX = "safemax_pl.unlearners.safemax.SAFEMax"
SAFEMAX_ROBUST = "safemax_pl.unlearners.safemax_robust.SAFEMaxRobust"
DEFENCES = ("clean_null", "inner_steps", "inner_lr")  # arguments of SAFEMax before 0.5.0, of SAFEMaxRobust now


def present_config(cfg: DictConfig) -> None:
    """Rename targets in a saved configuration, and the class of SAFEMax with defences, in place; resolve nothing."""
    for where, value in leaves(OmegaConf.to_container(cfg)):
        if where[-1] == "_target_" and (now := present_target(value)) != value:
            OmegaConf.update(cfg, dotted(where), now)
    plain: Any = OmegaConf.to_container(cfg)
    unlearner = plain.get("unlearner")
    if not isinstance(unlearner, dict) or unlearner.get("_target_") != SAFEMAX or "clean_null" not in unlearner:
        return
    if unlearner["clean_null"] or unlearner.get("inner_steps"):
        cfg.unlearner._target_ = SAFEMAX_ROBUST
        return
    with open_dict(cfg.unlearner):
        for key in DEFENCES:
            cfg.unlearner.pop(key, None)


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
