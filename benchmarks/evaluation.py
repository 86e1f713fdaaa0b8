"""Where does the time of an evaluation go?

Scores weights/digits/without_3 against the original as `python -m safemax_pl.evaluate` does, with the plan and sampler
of experiment=digits_methods, and times the parts: first with an empty cache, then with the cache of the first time. If
one part calls another, the time counts for the inner one. Classifying and features are one pass. Prints the seconds and
the share of every part, the ratio to sampling, and the floor: FLOPs of the network's passes at the rate of the fastest
matrix product. Takes a minute and a half on two cores.
"""

import io
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.command import command
from benchmarks.setting import Training, accelerator, digits_data
from benchmarks.tables import FOLDER, publish
from benchmarks.timing import default_device, matmul_flops, ratio, spread, stopwatch, synchronize
from safemax_pl.classifier.model import Classifier
from safemax_pl.common.files import PROJECT
from safemax_pl.evaluation.generation import ModelImages
from safemax_pl.evaluation.metric_suite import MetricSuite
from safemax_pl.evaluation.metrics.frechet import FrechetDistance
from safemax_pl.evaluation.metrics.kernel import KernelDistance
from safemax_pl.evaluation.metrics.manifold import PrecisionRecall
from safemax_pl.evaluation.real_features import RealFeatures
from safemax_pl.runs import evaluate

PARTS: dict[str, list[tuple[Any, str]]] = {
    "sampling": [(ModelImages, "forward")],
    "classifying and features": [(Classifier, "forward")],
    "real images: features and statistics": [(RealFeatures, "reference")],
    "FID": [(FrechetDistance, "update"), (FrechetDistance, "compute")],
    "KID": [(KernelDistance, "update"), (KernelDistance, "compute")],
    "precision and recall": [(PrecisionRecall, "update"), (PrecisionRecall, "compute")],
    "other scores": [(MetricSuite, "update"), (MetricSuite, "compute")],
    "loading": [(evaluate, "load_subject"), (evaluate, "make_evaluator")],
    "writing": [(evaluate, "keep_images"), (evaluate, "draw_samples"), (evaluate, "write_json")],
}

CACHED = "all, with the original's scores and the real features in the cache"


class Clock:
    """Measures the seconds of every part, without those of the parts that it calls."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.inner = [0.0]  # of the parts called by each open part

    def clocked(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            synchronize()
            start = time.perf_counter()
            self.inner.append(0.0)
            found = function(*args, **kwargs)
            synchronize()
            elapsed = time.perf_counter() - start
            self.seconds[part] += elapsed - self.inner.pop()
            self.inner[-1] += elapsed
            return found

        return call


def evaluate_once(overrides: list[str], cache: str) -> dict[str, float]:
    """Return the seconds of every part of one evaluation, of the rest and of all; `cache` is data.cache_dir."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.enter_context(redirect_stdout(io.StringIO()))
        for part, places in PARTS.items():
            for owner, name in places:
                stack.enter_context(patch.object(owner, name, clock.clocked(part, getattr(owner, name))))
        where = [f"runs_dir={folder}", f"data.cache_dir={cache}", "trainer.enable_progress_bar=false"]
        model = str(PROJECT / "weights/digits/without_3")
        total = stopwatch(lambda: evaluate.evaluate(model, [*overrides, *where]))
    return clock.seconds | {"the rest": total - sum(clock.seconds.values()), "all": total}


def main(steps: int = 25, forget: int = 100, retain: int = 450, repeats: int = 3, folder: str = FOLDER) -> Path:
    """Time evaluations of `forget` and `retain` images, sampled by DDIM in `steps` steps."""
    device = default_device()
    overrides = ["data=digits", "data.forget_classes=[3]", f"sampler.steps={steps}", "evaluation.guidance=[0]"]
    overrides += [f"evaluation.plans.standard={{forget_per_class: {forget}, retain_total: {retain}}}"]
    overrides += [accelerator()]
    runs, cached = list[dict[str, float]](), list[float]()
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            runs.append(evaluate_once(overrides, cache))
            cached.append(evaluate_once(overrides, cache)["all"])
    seconds = {part: [run[part] for run in runs] for part in runs[0]} | {CACHED: cached}
    ceiling, images = matmul_flops(device), forget + retain // 9 * 9
    passes = Training.of(digits_data(), device, "data=digits").pass_flops(2 * images) * steps
    rows = [
        {"part": part, "seconds": spread(values)}
        | {"share": ratio(values, seconds["all"]), "/ sampling": ratio(values, seconds["sampling"])}
        | ({"share of floor": passes / ceiling / spread(values).median} if part in ("sampling", "all") else {})
        for part, values in seconds.items()
    ]
    title = f"An evaluation of digits, {images} images of each of two models, DDIM {steps} steps, {repeats} repeats"
    return publish("evaluation", title, rows, {"digits": seconds}, folder, matmul_flops=ceiling)


if __name__ == "__main__":
    command(main)
