"""Certify an unlearned model: statements with stated error rates about leaks, similarity, membership and utility.

Usage:
  python -m safemax_pl.certify runs/digits_forget1                                 certificate.json and one paragraph
  python -m safemax_pl.certify runs/digits_forget1 'retrains=[runs/A,runs/B,runs/C]'   compared with retraining
  python -m safemax_pl.certify runs/digits_forget1 certificate=quick               a first look
  python -m safemax_pl.certify runs/digits_forget1 certificate.nonce=TEXT          the seeds of a verifier's choice
  python -m safemax_pl.certify --verify certificate.json runs/digits_forget1       compute it again and compare
  python -m safemax_pl.certify FOLDER data=digits data.forget_classes=[3]          a diffusers folder
  python -m safemax_pl.certify runs/digits_forget1 --cfg job                       print the configuration and exit

configs/certificate/<name>.yaml holds the settings. The seeds of all images are derived from the digest of the weights
and the nonce, so that nobody can tune a model to them. --verify exits with an error if a number, the model, the data or
the classifier differs. Reports (python -m safemax_pl.report) show the certificates of their runs.
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from safemax_pl.certificates.arguments import CHOICES, split_overrides
from safemax_pl.common.errors import UserError
from safemax_pl.config.command_line import command_on_folders
from safemax_pl.config.overrides import key_of
from safemax_pl.config.prerequisites import check_changes, check_model_folder

VERIFY = "--verify"


class Command:
    """The command, with the path of the certificate to verify, or None."""

    def __init__(self) -> None:
        self.certificate: str | None = None

    def take_verify(self, arguments: list[str]) -> list[str]:
        """Return the arguments without --verify and its file."""
        if VERIFY not in arguments:
            return arguments
        place = arguments.index(VERIFY)
        self.certificate = arguments[place + 1] if place + 1 < len(arguments) else ""
        return arguments[:place] + arguments[place + 2 :]

    def run(self, folders: list[str], overrides: list[str]) -> None:
        """Certify or verify. Imports are here, as they take seconds and must follow the checks of the command line."""
        from safemax_pl.certificates import certificate

        if self.certificate is None:
            certificate.certify(folders[0], overrides)
        else:
            certificate.verify(Path(self.certificate), folders[0], overrides)

    def check(self, folders: list[str], overrides: list[str]) -> None:
        """Check the command line without slow imports."""
        if self.certificate is not None:
            if not Path(self.certificate).is_file():
                raise UserError(
                    f"{VERIFY} {self.certificate}: there is no such file; give a certificate.json, then the run"
                )
            for item in overrides:
                if key_of(item).partition(".")[0] == "certificate":
                    raise UserError(f"{item}: {VERIFY} takes the settings from the certificate; leave it out")
        check_model_folder(folders[0])
        _, rest, node = split_overrides(overrides)
        check_changes(folders[0], rest, {"certificate": node})


def configuration(folders: list[str], overrides: list[str]) -> DictConfig:
    """Return the configuration for --cfg job."""
    from safemax_pl.runs.subject import subject_config

    _, rest, node = split_overrides(overrides)
    return subject_config(folders[0], rest, {"certificate": node})


def main() -> None:
    command = Command()
    sys.argv[1:] = command.take_verify(sys.argv[1:])
    help_text = f"{__doc__}\nSettings: {', '.join(CHOICES)}"
    command_on_folders(help_text, range(1, 2), command.run, configuration, command.check)


if __name__ == "__main__":
    main()
