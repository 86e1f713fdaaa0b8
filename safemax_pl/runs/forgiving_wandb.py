"""W&B logger that never ends a fit: an error prints one line, and the logger goes offline or off."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from safemax_pl.common import distributed
from safemax_pl.runs import wandb_process
from safemax_pl.runs.wandb_process import end_service, short_error, start_wandb, within


def wandb_logger(folder: Path, project: str, entity: str | None = None, group: str | None = None) -> "ForgivingWandb":
    """Return a Weights & Biases logger for the run in `folder`, one for all ranks; a resumed fit continues the W&B run.

    It logs online with an API key, or as WANDB_MODE says. After any failure it logs offline; if that fails too, it is
    off. A failure prints one line and never ends the fit.

    Args:
        folder: of the run.
        project, entity, group: names in W&B.
    """
    names = {"project": project, "entity": entity, "group": group, "name": folder.name}
    return ForgivingWandb(folder, start_wandb(folder, names) if distributed.is_first() else None)


def _forgiving(method: Callable[..., Any]) -> Callable[..., None]:
    """Wrap a method so that an error or a timeout turns the logger off and does not end the fit."""

    @wraps(method)
    def call(self: "ForgivingWandb", *args: Any, **kwargs: Any) -> None:
        if self.on:
            try:
                within(wandb_process.PATIENCE, partial(method, self, *args, **kwargs))
            except Exception as error:
                self.on = False
                _give_up(self.experiment, error)

    return call


class ForgivingWandb(WandbLogger):
    """Lightning's W&B logger, except that an error of W&B prints one line and turns the logger off.

    Args:
        folder: of the run.
        run: result of `wandb.init`; None turns the logger off.
    """

    def __init__(self, folder: Path, run: Any):
        super().__init__(name=folder.name, save_dir=folder, experiment=run)
        self.on = run is not None

    @property
    def experiment(self) -> Any:
        """W&B run, or None; Lightning's own property would start one."""
        return self._experiment  # private to Lightning, seen in 2.6.6

    log_hyperparams = _forgiving(WandbLogger.log_hyperparams)
    log_metrics = _forgiving(WandbLogger.log_metrics)
    log_table = _forgiving(WandbLogger.log_table)
    log_image = _forgiving(WandbLogger.log_image)
    finalize = _forgiving(WandbLogger.finalize)

    @_forgiving
    def summarize(self, values: dict[str, Any]) -> None:
        """Write final values into the summary of the W&B run."""
        self.experiment.summary.update(values)

    def finish(self) -> None:
        """Send unsent data and close the W&B run."""
        if self.on:
            self.on = False
            end_wandb()


def _give_up(run: Any, error: Exception) -> None:
    """Print the error and end W&B's process, without waiting for it after a timeout."""
    print(f"W&B: {short_error(error)}: off from here on; send the logged part with: wandb sync {Path(run.dir).parent}")
    end_service(at_once=isinstance(error, TimeoutError))


@contextmanager
def ending_wandb() -> Iterator[None]:
    """Finish the W&B run if the block raises, so that the next fit of this process starts a new one."""
    try:
        yield
    except BaseException:
        end_wandb(exit_code=1)
        raise


def end_wandb(exit_code: int = 0) -> None:
    """Send unsent data of this process's W&B run, if any, and close it."""
    wandb = sys.modules.get("wandb")  # not imported here, as that takes a second
    if wandb is not None and (run := wandb.run) is not None:
        try:
            within(wandb_process.FINISH_TIMEOUT + wandb_process.PATIENCE, partial(run.finish, exit_code=exit_code))
        except Exception as error:
            _give_up(run, error)
