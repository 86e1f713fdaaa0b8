"""What `test_ddp.py` runs on one rank and on two: `python tests/ranks_job.py FOLDER RUN`, which fails at its end."""

import sys
from pathlib import Path
from typing import Any

import torch
from helpers import TINY
from hydra.utils import instantiate
from lightning import Trainer

from safemax_pl.attacks.attack import attack
from safemax_pl.common import distributed
from safemax_pl.common.errors import UserError, clear_errors
from safemax_pl.config.command_line import quiet
from safemax_pl.config.compose import compose
from safemax_pl.config.overrides import last_of_each
from safemax_pl.diffusion.frozen import Frozen
from safemax_pl.evaluation.scoring import make_evaluator
from safemax_pl.runs.evaluate import evaluate
from safemax_pl.training.fit import fit
from safemax_pl.training.fit_classifier import fit_classifier
from safemax_pl.training.module import UnlearningModule

# The other methods are these in other settings, or plain sums of losses that DDP averages as it does these.
METHODS = [
    *("erasediff", "retrain", "salun", "selective_amnesia", "sfr_on", "siss"),
]
CLASSIFIER = [
    "experiment=digits_classifier",
    "logger=csv",
    "trainer.enable_progress_bar=false",
    "trainer.max_steps=4",
    "trainer.val_check_interval=4",
    "trainer.log_every_n_steps=1",
    "batch_size=32",
    "optimizer._target_=torch.optim.SGD",
]
SMALL = {  # what makes preparation small and the inner parts of methods active
    "selective_amnesia": ["unlearner.replay_per_class=2", "unlearner.fisher_images=4", "unlearner.fisher_timesteps=2"],
    "sfr_on": ["unlearner.fisher_batches=1"],
}


def tiny(folder: Path, devices: int, *overrides: str) -> list[str]:
    """The overrides of a fit of seconds."""
    sizes = ["data.retain_batch_size=12", "evaluation.plans.standard.forget_per_class=5"]
    places = ["logger=csv", f"runs_dir={folder}", f"data.cache_dir={folder}/cache", f"trainer.devices={devices}"]
    return last_of_each([*TINY, *sizes, *places, *overrides])


SOME_WEIGHTS = [  # (method, parameters): masks, inner steps, separate gradients and adapters
    ("safemax_robust", "embeddings"),
    ("safemax", "lora"),
]


class Log:
    """The losses that a module logs, one after the other."""

    def __init__(self, module: UnlearningModule):
        self.module, self.losses = module, list[float]()
        self.log_dict, module.log_dict = module.log_dict, self.keep  # type: ignore[method-assign]

    def keep(self, values: dict[str, torch.Tensor], **arguments: Any) -> None:
        self.losses += [distributed.all_reduce_mean(value).item() for value in values.values()]
        self.log_dict(values, **arguments)


def steps(folder: Path, devices: int, method: str, *overrides: str, fails_on: int | None = None) -> dict[str, Any]:
    """Two steps of plain descent from the shipped model: the losses, all weights, and how far these have moved."""
    overrides = (f"unlearner={method}", *SMALL.get(method, []), *overrides)
    cfg = compose("fit", tiny(folder, devices, *overrides))
    data = instantiate(cfg.data)
    data.setup("fit")
    student = instantiate(cfg.model, data=data)
    if cfg.parameters is not None:
        instantiate(cfg.parameters).choose(student, cfg.seed)
    unlearner = instantiate(cfg.unlearner)
    for part in ("forget", "retain"):
        if not getattr(unlearner, f"needs_{part}"):
            data.batch_sizes[part] = 0
    evaluator = make_evaluator(cfg, data)
    teacher = Frozen(instantiate(cfg.model, data=data))
    start = torch.cat([parameter.detach().flatten() for parameter in student.parameters()])
    sgd = instantiate({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.01})
    module = UnlearningModule(student, teacher, unlearner, evaluator, sgd)
    log = Log(module)
    if fails_on == distributed.rank():
        losses = unlearner.losses
        unlearner.losses = lambda *batch: type(losses(*batch))(*(loss * torch.nan for loss in losses(*batch)))
    settings = {"logger": False, "enable_checkpointing": False, "max_steps": 2, "limit_val_batches": 0}
    trainer: Trainer = instantiate(cfg.trainer, **settings)
    trainer.fit(module, datamodule=data)
    weights = torch.cat([parameter.detach().flatten() for parameter in student.parameters()])
    return {"losses": log.losses, "weights": weights, "moved": (weights - start).norm()}


def job(folder: Path, run: Path, devices: int) -> dict[str, Any]:
    """Every method, the scores of a run, an attack on it, a fit that stops early and a classifier."""
    distributed.start(make_evaluator_of(folder, devices).make_trainer())
    result: dict[str, Any] = {method: steps(folder, devices, method) for method in METHODS}
    result["bounded"] = steps(folder, devices, "rgd", "unlearner.bound=0.001", "parameters=embeddings")
    for method, moving in SOME_WEIGHTS:
        result[f"{method}, {moving}"] = steps(folder, devices, method, f"parameters={moving}")
    try:
        steps(folder, devices, "safemax", fails_on=devices - 1)
    except UserError as error:
        result["nan"] = str(error)
    evaluate(str(run), [f"trainer.devices={devices}", f"data.cache_dir={folder}/cache"])
    small = {"images": "[10]", "budget.score_at": "[0,2]", "images_per_class": "5", "retain_total": "9"}
    budget = [f"attacks.relearning.{name}={value}" for name, value in small.items()]
    attack(str(run), ["attack=relearning", *budget, f"trainer.devices={devices}", f"data.cache_dir={folder}/cache"])
    fit(compose("fit", tiny(folder, devices, "stop_when={ua: 0, delta/fid_retain/classifier: 1e9}")), "stopped")
    classifier = [*CLASSIFIER, f"runs_dir={folder}", f"data.cache_dir={folder}/cache", f"trainer.devices={devices}"]
    fit_classifier(compose("fit_classifier", classifier), "classifier")
    return result


def make_evaluator_of(folder: Path, devices: int) -> Any:
    cfg = compose("fit", tiny(folder, devices))
    data = instantiate(cfg.data)
    data.setup("fit")
    return make_evaluator(cfg, data)


def fails(folder: Path) -> None:
    """A fit whose rank 1 fails in the second step, while rank 0 goes on to wait for it."""
    step = UnlearningModule.training_step

    def broken(self: UnlearningModule, *arguments: Any) -> None:
        if self.global_rank == 1 and self.global_step == 1:
            raise UserError("the disk of this machine is gone")
        step(self, *arguments)

    UnlearningModule.training_step = broken  # type: ignore[method-assign]
    with clear_errors(), distributed.ending_ranks():
        fit(compose("fit", tiny(folder, 2)), "fails")


if __name__ == "__main__":
    torch.set_num_threads(1)
    quiet()
    where = Path(sys.argv[1])
    torch.save(job(where, Path(sys.argv[2]), 2), where / f"rank{distributed.rank()}.pt")
    fails(where)
