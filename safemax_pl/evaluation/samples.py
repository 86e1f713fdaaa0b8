"""Keep images of a run (samples.safetensors) and draw them (samples.png)."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from safemax_pl.common import untrusted
from safemax_pl.common.files import atomic
from safemax_pl.data.sampling_plan import Rows, SamplingPlan
from safemax_pl.evaluation import figures
from safemax_pl.evaluation.results import Results, guidance_key

MODELS = ("original", "unlearned", "model")  # from left to right


def keep_images(folder: Path, plan: SamplingPlan, results: Results) -> None:
    """Write samples.safetensors with the images of the first seeds of every class, enough for samples.png.

    It holds "w=0/unlearned" and so on, uint8 `[N, C, H, W]`, and `labels` and `seeds`, `[N]`.
    """
    panels = next(iter(results.images.values()))
    kept = plan.seeds < (figures.PANEL_COLUMNS if len(panels) > 1 else figures.LONE_COLUMNS)
    tensors = {"labels": plan.labels[kept], "seeds": plan.seeds[kept]}
    for guidance, models in results.images.items():
        tensors |= {f"{guidance_key(guidance)}/{name}": pixels[kept] for name, pixels in models.items()}
    with atomic(folder / "samples.safetensors") as part:
        save_file(tensors, part)


def draw_samples(folder: Path, protocol: dict[str, Any], class_names: list[str], title: str) -> None:
    """Draw samples.png from the kept images of the first guidance weight, with one panel per model.

    Args:
        folder: holds samples.safetensors.
        protocol: protocol of the scores, with the guidance weights and the forget classes.
        class_names: names of all classes.
        title: title of the picture.
    """
    kept = untrusted.read_tensors(folder / "samples.safetensors", untrusted.MAX_IMAGES)
    first = guidance_key(protocol["guidance"][0])
    panels = {name: kept[f"{first}/{name}"] for name in MODELS if f"{first}/{name}" in kept}
    forget = [class_names.index(name) for name in protocol["forget_classes"]]
    rows = Rows(kept["labels"], kept["seeds"], torch.arange(len(kept["seeds"])))
    figures.sample_grid(folder / "samples.png", panels, rows, class_names, forget, title)
