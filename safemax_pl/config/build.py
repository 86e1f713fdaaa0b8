"""Instantiate the nodes of a configuration."""

from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from safemax_pl.common.errors import UserError, one_line

BAD_SETTINGS = (TypeError, ValueError, ArithmeticError, AttributeError, ImportError, LookupError)


def build(node: Any, **arguments: Any) -> Any:
    """Call a node's `_target_` with its keys and `arguments`.

    Raises:
        UserError: for a missing or illegal setting, with the message of the constructor.
    """
    try:
        return hydra.utils.instantiate(node, **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        if error.__cause__ is None or _is_about_settings(error.__cause__):
            raise UserError(one_line(error)) from error
        raise
    except MissingMandatoryValue as error:
        raise UserError(f"the setting {error.full_key} is missing: give {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error


def _is_about_settings(error: BaseException) -> bool:
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    return isinstance(error, (*BAD_SETTINGS, MisconfigurationException))
