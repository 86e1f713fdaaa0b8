"""Attack an unlearned model, to measure whether a forget class is erased or only hidden.

Usage:
  python -m safemax_pl.attack runs/digits_forget1 attack=relearning            one attack
  python -m safemax_pl.attack runs/digits_forget1 attack=[null_leak,late_start]
  python -m safemax_pl.attack runs/digits_forget1 attack=all retrain=runs/X     compared with retraining
  python -m safemax_pl.attack FOLDER attack=all data=digits data.forget_classes=[3]     a diffusers folder
  python -m safemax_pl.attack runs/digits_forget1 attack=relearning attacks.relearning.budget.rate=1e-3
  python -m safemax_pl.attack runs/digits_forget1 attack=relearning --cfg job  print the configuration and exit

configs/attack/<name>.yaml holds the settings of an attack: its budget, which is equal for all models. The original, the
model of `retrain` and pure noise are attacked for comparison. Results are written to <run>/attacks/<name>-<protocol>/
(curve.csv, figure.png, images.safetensors, result.json) and to "attacks" in the run's metrics.json. The same command
again resumes from the finished curves in the cache.
"""

from omegaconf import DictConfig

from safemax_pl.attacks.arguments import OWN, split_overrides
from safemax_pl.config.command_line import command_on_folders
from safemax_pl.config.groups import options
from safemax_pl.config.prerequisites import check_changes, check_model_folder


def run(folders: list[str], overrides: list[str]) -> None:
    """Attack the folder. Imports are here, as they take seconds and must follow the checks of the command line."""
    from safemax_pl.attacks.attack import attack

    attack(folders[0], overrides)


def configuration(folders: list[str], overrides: list[str]) -> DictConfig:
    """Return the configuration for --cfg job."""
    from safemax_pl.attacks.attack import attack_config

    return attack_config(folders[0], overrides)


def check(folders: list[str], overrides: list[str]) -> None:
    """Check the command line without slow imports."""
    check_model_folder(folders[0])
    _, rest, nodes = split_overrides(overrides)
    check_changes(folders[0], rest, {"attacks": nodes}, OWN)


def main() -> None:
    help_text = f"{__doc__}\nAttacks: {', '.join(options('attack'))}"
    command_on_folders(help_text, range(1, 2), run, configuration, check)


if __name__ == "__main__":
    main()
