"""Sampler transfer: samplers, steps and guidance weights other than those of the scores."""

from collections.abc import Iterator
from typing import Any, final

from safemax_pl.attacks.base import Attack, Bench, Point, ascending
from safemax_pl.common.errors import UserError
from safemax_pl.diffusion.sampler import Sampler, samplers_of
from safemax_pl.diffusion.unet import Model
from safemax_pl.evaluation.generation import ModelImages


@final
class SamplerTransfer(Attack):
    """Generate the forgotten classes with every sampler, number of steps and guidance weight of a grid.

    Args:
        samplers: arguments of `Sampler`, one mapping for each, with an ascending list of `steps`.
        guidance_weights: w of the grid.
        images_per_class: see `Attack`.
    """

    title = "Sampler transfer"
    headline = "lowest ua_noise_aware"
    axis = "sampling steps"

    def __init__(self, samplers: list[dict[str, Any]], guidance_weights: list[float], images_per_class: int):
        super().__init__(images_per_class, guidance_weights)
        self.samplers = [dict(settings) for settings in samplers]
        where = "attacks.sampler_transfer.samplers"
        samplers_of(where, [{key: value for key, value in one.items() if key != "steps"} for one in self.samplers])
        for settings in self.samplers:
            settings["steps"] = ascending(f"{where}.steps", settings.get("steps", []), 1)
        names = [settings.get("name") for settings in self.samplers]
        if not names or None in names or len(set(names)) < len(names):
            raise UserError(f"{where} has the names {names}: give at least one sampler, each by its name, once")

    def check(self, model: Model, bench: Bench) -> None:
        super().check(model, bench)
        for samplers, _ in self._grid().values():
            for sampler in samplers:
                sampler.check(model.diffusion)

    def series(self) -> dict[str, int]:
        return {name: len(samplers) for name, (samplers, _) in self._grid().items()}

    def _grid(self) -> dict[str, tuple[list[Sampler], float]]:
        """Return the samplers and w of every curve."""
        return {
            f"{settings['name']}, w={w:g}": ([Sampler(**(settings | {"steps": n})) for n in settings["steps"]], w)
            for settings in self.samplers
            for w in self.guidance_weights
        }

    def curve(self, series: str, model: Model, bench: Bench) -> Iterator[Point]:
        samplers, guidance = self._grid()[series]
        for sampler in samplers:
            images = ModelImages(model, sampler, guidance, bench.data.image_shape)
            yield bench.point(sampler.steps, images, self.images_per_class)
