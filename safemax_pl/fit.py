"""Unlearn classes of a diffusion model, or train a base model, and score the result.

Usage:
  python -m safemax_pl.fit experiment=digits_forget1              demo: unlearn one digit, in two minutes
  python -m safemax_pl.fit experiment=digits_forget1 data.forget_classes=[3,5] unlearner=safemax_paper
  python -m safemax_pl.fit experiment=cifar100_forget10 data.path=FOLDER_WITH_PARQUET
  python -m safemax_pl.fit experiment=digits_forget1 parameters=lora optimizer.lr=2e-3      low-rank adapters only
  python -m safemax_pl.fit experiment=digits_forget1 'stop_when={ua_noise_aware: 0.99}'     stop at this threshold
  python -m safemax_pl.fit experiment=digits_forget1 -m seed=0,1,2        several runs in sequence
  python -m safemax_pl.fit experiment=digits_forget1 -m seed=0,1 hydra/launcher=submitit_slurm
                                              as SLURM jobs (hydra-submitit-launcher); submitit_local: on this machine
  python -m safemax_pl.fit experiment=digits_forget1 --cfg job            print the configuration and exit

A run is a folder runs/<name> with config.yaml, metrics.csv, metrics.json, samples.png, curves.png, unet/ and scheduler/
(diffusers format) and last.ckpt. The same command again resumes an interrupted run, or prints the scores of a finished
one. configs/fit.yaml documents every setting; change settings with key=value.
"""

from omegaconf import DictConfig

from safemax_pl.config.command_line import command


def run(cfg: DictConfig, overrides: list[str]) -> None:
    """Run the fit. Imports are here, as they take seconds and must follow the checks of the command line."""
    from safemax_pl.config.locations import run_name
    from safemax_pl.training.fit import fit

    fit(cfg, run_name(cfg, overrides))


def main() -> None:
    command("fit", __doc__ or "", run)


if __name__ == "__main__":
    main()
