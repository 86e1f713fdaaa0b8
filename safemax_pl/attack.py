"""Attack an unlearned model: is the class gone, or hidden?

Usage:
  python -m safemax_pl.attack runs/digits_forget1 attack=relearning            one attack
  python -m safemax_pl.attack runs/digits_forget1 attack=[null_leak,late_start]
  python -m safemax_pl.attack runs/digits_forget1 attack=all retrain=runs/X    next to a model that never knew the class
  python -m safemax_pl.attack FOLDER attack=all data=digits data.forget_classes=[3]     a model that others saved
  python -m safemax_pl.attack runs/digits_forget1 attack=relearning attacks.relearning.budget.rate=1e-3

Every attack is described in configs/attack/<name>.yaml; its settings are the attacker's budget, equal for all models.
The original, the model of `retrain` and pure noise get the same. Results go to <run>/attacks/<name>-<protocol>/
(curve.csv, figure.png, images.safetensors, result.json) and into the block "attacks" of the run's metrics.json. The
same command again resumes: finished curves are kept in the cache.
"""

from omegaconf import DictConfig

from safemax_pl.config.command_line import command_on_folders
from safemax_pl.config.compose import CONFIGS

NAMES = sorted(path.stem for path in (CONFIGS / "attack").glob("*.yaml"))


def run(folders: list[str], overrides: list[str]) -> None:
    from safemax_pl.attacks.attack import attack

    attack(folders[0], overrides)


def configuration(folders: list[str], overrides: list[str]) -> DictConfig:
    from safemax_pl.attacks.attack import attack_config

    return attack_config(folders[0], overrides)


def main() -> None:
    command_on_folders(f"{__doc__}\nAttacks: {', '.join(NAMES)}", range(1, 2), run, configuration)


if __name__ == "__main__":
    main()
