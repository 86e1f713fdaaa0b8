"""The columns of the tables: which direction is better, and how numbers are printed."""

from typing import NamedTuple

from safemax_pl.evaluation.metric_suite import BETTER

HARM = "delta/fid_retain/classifier"


class Column(NamedTuple):
    """A column of the summary.

    Attributes:
        key: of `FinishedRun.values`.
        better: "higher", "lower", or "" if neither is better.
        form: format of the mean.
        sd_form: format of both standard deviations.
        on_hardware: whether the value depends on the machine.
    """

    key: str
    better: str
    form: str
    sd_form: str
    on_hardware: bool = False

    @property
    def title(self) -> str:
        return self.key.replace("delta/", "Δ ")

    @property
    def arrow(self) -> str:
        return {"higher": "↑", "lower": "↓", "": ""}[self.better]


def _score(key: str, form: str, sd_form: str) -> Column:
    """Return the column of a score, or of its difference to the original's."""
    return Column(key, BETTER.get(key.removeprefix("delta/"), ""), form, sd_form)


COLUMNS = (
    _score("ua_noise_aware", ".3f", ".3f"),
    _score("ua_noise_aware/second", ".3f", ".3f"),
    _score("ua", ".3f", ".3f"),
    _score("noise_rate", ".3f", ".3f"),
    _score("halting", ".3f", ".3f"),
    _score("retain_accuracy", ".3f", ".3f"),
    _score("retain_accuracy/second", ".3f", ".3f"),
    _score("delta/retain_accuracy", "+.3f", ".3f"),
    _score("fid_retain/classifier", ".3g", ".3g"),
    _score(HARM, "+.3g", ".3g"),
    _score("kid_retain/classifier", ".3g", ".3g"),
    _score("precision/classifier", ".3f", ".3f"),
    _score("recall/classifier", ".3f", ".3f"),
    _score("fid_retain/inception", ".3g", ".3g"),
    _score("delta/fid_retain/inception", "+.3g", ".3g"),
    _score("kid_retain/inception", ".3g", ".3g"),
    _score("precision/inception", ".3f", ".3f"),
    _score("recall/inception", ".3f", ".3f"),
    _score("drift", ".3g", ".2g"),
    _score("classifier_disagreement", ".3f", ".3f"),
    Column("total_seconds", "lower", ".3g", ".3g", on_hardware=True),
    Column("preparation_seconds", "", ".3g", ".3g", on_hardware=True),
    Column("unlearn_seconds", "", ".3g", ".3g", on_hardware=True),
    Column("total_flops", "lower", ".3g", ".3g"),
    Column("preparation_flops", "", ".3g", ".3g"),
    Column("unlearn_flops", "", ".3g", ".3g"),
    Column("peak_memory_mb", "lower", ".4g", ".3g", on_hardware=True),
    Column("trainable_parameters", "", ".3g", ".3g"),
)
