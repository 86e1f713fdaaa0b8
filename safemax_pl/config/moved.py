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
# key of metrics.json before 0.5.0 -> key now, at any depth above the names of classes
METRICS = {
    "judges": "classifiers",
    "judge_disagreement": "classifier_disagreement",
    "prior_seconds": "preparation_seconds",
    "prior_flops": "preparation_flops",
    "conditional to unconditional": "unconditional to conditional",  # curve of the attack null_leak
}
# key of sweep.prune before 0.5.0 -> key now
PRUNE = {"least_forgetting": "min_forgetting", "most_harm": "max_harm"}
SAFEMAX = "safemax_pl.unlearners.safemax.SAFEMax"
SAFEMAX_ROBUST = "safemax_pl.unlearners.safemax_robust.SAFEMaxRobust"
# (target, key that is gone) -> what to do; errors say it in place of similar keys
REMOVED = dict.fromkeys(
    [(SAFEMAX, "guidance"), (SAFEMAX_ROBUST, "guidance")],
    "it brought the class back: leave it out; unlearner.null_on_path concerns guided chains",
)
# target -> keys that are new in 0.5.0, with the values at which it does what it did before
OFF_PATH = {"on_path": 0.0, "null_on_path": 0.0, "null_on_images": 0.0}
IN_EVERY_STEP = {"inner_share": 1.0, "inner_on_path": True}
FORMER: dict[str, dict[str, Any]] = {
    SAFEMAX: OFF_PATH,
    SAFEMAX_ROBUST: OFF_PATH | IN_EVERY_STEP,
    "safemax_pl.unlearners.random_label.RandomLabel": {"forget_dropout": 0.0},
    "safemax_pl.unlearners.salun.SalUn": {"mask_guidance": 0.0, "mask_clip": None, "forget_dropout": 0.0},
    "safemax_pl.unlearners.erasediff.EraseDiff": {"forget_dropout": 0.0},
    "safemax_pl.unlearners.esd.ESD": {"replay_guidance": 0.0},
    "safemax_pl.unlearners.selective_amnesia.SelectiveAmnesia": {
        "replay_guidance": 0.0,
        "fisher_dropout": 0.0,
        "reduction": "mean",
    },
    "safemax_pl.unlearners.sfr_on.SFROn": {
        "fisher_guidance": 0.0,
        "fisher_clip": None,
        "forget_dropout": 0.0,
        "reduction": "mean",
    },
    "safemax_pl.unlearners.siss.SISS": {"reduction": "mean"},
}
DEFENCES = {"clean_null": False, "inner_steps": 0, "inner_lr": 1e-3}  # SAFEMax had these before 0.5.0; off by default


def present_config(content: Any) -> Any:
    """Return a saved configuration, as plain mappings and lists, with the present names of targets and all keys.

    SAFEMax with defences becomes the class that has them now. It loses `guidance`, which only training
    used.
    """
    if isinstance(content, list):
        return [present_config(value) for value in content]
    if not isinstance(content, dict):
        return content
    found = {
        key: present_target(value) if key == "_target_" else present_config(value) for key, value in content.items()
    }
    found = FORMER.get(str(found.get("_target_")), {}) | found
    if "ema_decay" in found:  # the top level
        found = {"ema_warmup": True} | found
    if found.get("_target_") in (SAFEMAX, SAFEMAX_ROBUST):
        found.pop("guidance", None)
    if found.get("_target_") != SAFEMAX:
        return found
    defences = {key: found.pop(key, default) for key, default in DEFENCES.items()}
    if not defences["clean_null"] and not defences["inner_steps"]:
        return found
    return found | {"_target_": SAFEMAX_ROBUST, **IN_EVERY_STEP, **defences}


def present_study(identity: dict[str, Any]) -> dict[str, Any]:
    """Return the identity of a saved study (`Sweep.identity`) with the present names of targets and keys."""
    found = present_metrics(present_config(identity))
    if isinstance(prune := found.get("prune"), dict):
        found["prune"] = {PRUNE.get(key, key): value for key, value in prune.items()}
    return found


def present_target(target: Any) -> Any:
    """Return the present name of a `_target_`; values that were not renamed are returned unchanged."""
    if not isinstance(target, str):
        return target
    module, _, name = target.rpartition(".")
    return TARGETS.get(target) or (f"{MODULES[module]}.{name}" if module in MODULES else target)


def present_metrics(content: Any) -> Any:
    """Return the content of a metrics.json with the present names of its keys."""
    if isinstance(content, dict):
        return {
            METRICS.get(key, key): _present_keys(value) if key == "per_class" else present_metrics(value)
            for key, value in content.items()
        }
    return [present_metrics(value) for value in content] if isinstance(content, list) else content


def _present_keys(per_class: Any) -> Any:
    """Return metric -> class -> value with the present names of the metrics; a class may have any name."""
    if not isinstance(per_class, dict):
        return per_class
    return {METRICS.get(metric, metric): by_class for metric, by_class in per_class.items()}
