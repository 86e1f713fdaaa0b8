"""Certify an unlearned model: statements with stated error rates about leaks, similarity, membership and utility.

Usage:
  python -m safemax_pl.certify runs/digits_forget1                                 certificate.json and one paragraph
  python -m safemax_pl.certify runs/digits_forget1 'retrains=[runs/A,runs/B,runs/C]'   compared with retraining
  python -m safemax_pl.certify runs/digits_forget1 certificate=quick               a first look
  python -m safemax_pl.certify runs/digits_forget1 certificate.nonce=TEXT          seeds that a verifier chooses
  python -m safemax_pl.certify --verify certificate.json runs/digits_forget1       compute it again and compare
  python -m safemax_pl.certify FOLDER data=digits data.forget_classes=[3]          a diffusers folder
  python -m safemax_pl.certify runs/digits_forget1 --cfg job                       print the configuration and exit

configs/certificate/<name>.yaml holds the settings. The seeds of all images follow from the digest of the weights and
the nonce. A verifier chooses a nonce of their own. --verify ends with an error if a number, the model, the data or the
classifier differs. Reports (python -m safemax_pl.report) show the certificates of their runs.
"""

from omegaconf import DictConfig

from safemax_pl.certificates.arguments import CHOICES, OWN, split_overrides
from safemax_pl.config.command_line import command_on_folders
from safemax_pl.config.prerequisites import check_changes, check_model_folder


def run(folders: list[str], overrides: list[str]) -> None:
    """Certify or verify. Imports are here, as they take seconds and must follow the checks of the command line."""
    from safemax_pl.certificates.certificate import certify, verify

    own, _ = split_overrides(overrides)
    if own.verify is None:
        certify(folders[0], overrides)
    else:
        verify(own.verify, folders[0], overrides)


def configuration(folders: list[str], overrides: list[str]) -> DictConfig:
    """Return the configuration for --cfg job."""
    from safemax_pl.runs.subject import subject_config

    own, rest = split_overrides(overrides)
    return subject_config(folders[0], rest, {"certificate": own.node})


def check(folders: list[str], overrides: list[str]) -> None:
    """Check the command line without slow imports."""
    check_model_folder(folders[0])
    own, rest = split_overrides(overrides)
    check_changes(folders[0], rest, {"certificate": own.node}, OWN)


def main() -> None:
    help_text = f"{__doc__}\nSettings: {', '.join(CHOICES)}"
    command_on_folders(help_text, range(1, 2), run, configuration, check, flags_for_settings=["verify"])


if __name__ == "__main__":
    main()
