"""Print the scores of a run on the terminal."""

from typing import Any

from rich.table import Table
from rich.text import Text

from safemax_pl.classifier.accuracy import sentence
from safemax_pl.common.console import add_model_columns, plain_console, print_table
from safemax_pl.common.escaping import printable
from safemax_pl.evaluation.metric_suite import METRICS
from safemax_pl.runs.run import steps_taken


def print_scores(metrics: dict[str, Any], title: str) -> None:
    """Print the scores of a `metrics.json`: one row per metric, one column per model and control."""
    console = plain_console()
    for guidance, models in metrics["scores"].items():
        line = Text.assemble((printable(title), "bold"), f"   {printable(guidance)}, {printable(_plan(metrics))}")
        console.print(line, soft_wrap=True)
        table = Table()
        table.add_column("metric")
        add_model_columns(table, models)
        for name in METRICS:
            if any(name in scores for scores in models.values()):
                table.add_row(name, *(f"{scores[name]:.4g}" if name in scores else "-" for scores in models.values()))
        print_table(table)
    if metrics.get("cost"):
        cost = "   ".join(f"{printable(name)} {value:.4g}" for name, value in metrics["cost"].items())
        console.print(cost, soft_wrap=True)


def print_end_of_fit(training: dict[str, Any]) -> None:
    """Print the number of steps and the reason for the end, from the `training` section of a `metrics.json`."""
    steps, max_steps, stopped_by = steps_taken(training), training["max_steps"], training.get("stopped_by")
    why = "all of them" if steps >= max_steps else "trainer.max_time was over"
    if stopped_by:
        why = f"stop_when was satisfied: {', '.join(stopped_by)}"
    elif training.get("stop_when"):
        why += "; stop_when was not satisfied"
    print(printable(f"steps: {steps} of {max_steps}, {why}"))


def _plan(metrics: dict[str, Any]) -> str:
    """Describe the protocol of the scores in one line."""
    plan, sampler = metrics["protocol"]["plan"], metrics["protocol"]["sampler"]
    forget = ", ".join(metrics["protocol"]["forget_classes"]) or "nothing"
    return (
        f"forgetting {forget}; plan {plan['name']} ({plan['forget_per_class']} per forget class, "
        f"{plan['retain_total']} retain), {sampler['name']} {sampler['steps']} steps"
        + (f"; {sentence(metrics['classifiers'])}" if metrics.get("classifiers") else "")
    )
