"""BARRIER: relabelling, with bounds on the change of linear layers for other inputs (https://arxiv.org/abs/2605.15737)."""

import math
from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from safemax_pl.common.errors import UserError
from safemax_pl.common.rng import Stream
from safemax_pl.data.batch import LabelledImages
from safemax_pl.data.datamodule import ForgetRetainDataModule
from safemax_pl.diffusion.trainable import matching, trainable
from safemax_pl.diffusion.unet import Model
from safemax_pl.unlearners.base import Losses, Task, Unlearner, check_probabilities, with_null
from safemax_pl.unlearners.losses import next_retain_labels, relabelling_loss
from safemax_pl.unlearners.preparation import Preparation, State

MAX_BATCH = 128  # images in a pass of the preparation


class Layer(NamedTuple):
    """Constants of a layer's protection, from the original network. Stacked, they are those of L equal layers.

    Attributes:
        weight, bias: of the original, `[out, in]` and `[out]`; zeros for a layer without bias.
        mean: μ, `[in, 1]`.
        first: U_fᵀ, `[in, k]`.
        rest: U_rᵀ S_r, `[in, in − k]`.
        near, far: the ends of the protected intervals on each direction of U_f: (z_min, lo, z_max, hi), and their
            opposites (lo, z_min, hi, z_max), `[k, 4]`.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    first: Tensor
    rest: Tensor
    near: Tensor
    far: Tensor


@final
class BARRIER(Unlearner):
    """L = E‖ε_θ(x_t, t, c_f) − sg ε_θ(x_t, t, c̃)‖² + retain_weight · mean_l R_l(ΔW, Δb), for linear layers l only.

    R = mean (ΔW μ + Δb)² + mean (ΔW U_rᵀ S_r)² + mean b_1² + mean b_2² + mean b_3² + mean b_4² penalises changes of a
    layer's output for inputs outside the forget set. ΔW and Δb are its changes since the original. μ is the mean of its
    forget inputs, U_f the first `directions` right singular vectors of the centred ones, U_r the others, S_r the
    singular values of U_r. b are the bounds of ΔW U_fᵀ z over two intervals of the projection z of an input on U_f:
    [lo, z_min] and [z_max, hi], between quantiles z_min and z_max of the forget inputs and the extremes lo and hi of
    all inputs. With ΔW U_fᵀ = P − N, P and N ≥ 0, the bounds over [u, v] are P u − N v and P v − N u.

    All other weights have a gradient of 0; an optimiser with weight decay would still move them. There is no retain
    term. c̃ is the next retain class.

    The authors train query, key and value of the attention, and an MLP of the class embedding. The networks here have
    no such MLP; the linear layers that read the class embedding are `time_emb_proj`. The authors hold all inputs in
    memory. Here they come in batches: centred by the batch's own mean, with quantiles averaged over batches. S_r is
    scaled to one visit of the whole forget set, as in the authors' code.

    Args:
        layers: names of linear modules at any depth, as in `parameters.names`. Those that `parameters=` freezes are
            left out; at least one must remain.
        directions: number of directions in U_f, ≥ 1; all of a layer with fewer inputs.
        quantile: in [0, 0.5); z_min is this quantile, z_max the opposite one.
        input_batches: maximum number of batches of 128 images of each set in the statistics, ≥ 1.
        forget_dropout: probability in [0, 1] that c_f becomes ∅, and independently that c̃ does; also that a label does
            in the statistics.
        retain_weight: λ; R is reported as the retain loss.
    """

    needs_retain: bool = False
    weighs_original: bool = True

    def __init__(
        self,
        layers: list[str],
        directions: int = 32,
        quantile: float = 0.05,
        input_batches: int = 40,
        forget_dropout: float = 0.1,
        forget_weight: float = 1.0,
        retain_weight: float = 1.0,
    ):
        super().__init__(forget_weight, retain_weight, 0.0)
        for name, count in (("directions", directions), ("input_batches", input_batches)):
            if count < 1:
                raise UserError(f"unlearner.{name}={count}: give at least 1")
        if not 0 <= quantile < 0.5:
            raise UserError(f"unlearner.quantile={quantile}: give a number from 0 to below 0.5")
        check_probabilities(forget_dropout=forget_dropout)
        self.layers, self.directions, self.quantile = list(layers), directions, quantile
        self.input_batches, self.forget_dropout = input_batches, forget_dropout

    def check(self, model: Model) -> None:
        if not self.trained(model, trainable(model)):
            raise UserError(
                f"unlearner.layers={self.layers}: parameters= freezes all linear layers of these names; give "
                "parameters=all"
            )

    def trained(self, network: nn.Module, weights: dict[str, nn.Parameter]) -> dict[str, nn.Linear]:
        """Return the linear layers of a network that `layers` names and whose weights are trainable, by name."""
        linear = {name: part for name, part in network.named_modules() if isinstance(part, nn.Linear)}
        named = matching("unlearner.layers", self.layers, linear)
        return {name: part for name, part in linear.items() if name in named and f"{name}.weight" in weights}

    # -- before the fit ------------------------------------------------------------------------------------------

    def prepare(self, task: Task, data: ForgetRetainDataModule, preparation: Preparation) -> None:
        device = task.forget_labels.device
        layers = self.trained(task.teacher.to(device).network, task.weights)
        images = {part: len(data.rows("train", part)) for part in ("forget", "retain")}
        batches = {part: data.chunks(part, MAX_BATCH) for part in images}
        sizes = {part: -(-images[part] // batches[part]) for part in images}  # equal ones, the last may be smaller
        forget, retain = (min(batches[part], self.input_batches) for part in images)
        settings = [list(layers), self.forget_dropout, sizes, forget, retain]

        def visit(part: str, i: int, statistics: Callable[[int, Tensor], State]) -> State:
            """Compute statistics of the inputs `[rows, in]` of each layer, by number, in a batch of a part."""
            batch = data.chunk(part, i, sizes[part], device)
            x_t, _, t = task.diffusion.noised(batch)
            labels = with_null(task, batch.labels, batch.keys, Stream.FORGET_NULL, self.forget_dropout)
            states, hooks = dict[int, State](), []
            for k, layer in enumerate(layers.values()):

                def keep(_: nn.Module, inputs: tuple[Tensor, ...], k: int = k) -> None:
                    states[k] = statistics(k, inputs[0].flatten(0, -2))

                hooks.append(layer.register_forward_pre_hook(keep))
            task.teacher(x_t, t, labels)
            for hook in hooks:
                hook.remove()
            return [tensor for k in range(len(layers)) for tensor in states[k]]

        moments = preparation.fold(
            "input_moments", settings, forget, lambda i: visit("forget", i, lambda _, rows: moments_of(rows))
        )
        # A result of its own: eigenvectors of equal eigenvalues are arbitrary, and must be the same on all ranks
        bases = preparation.fold(
            "input_bases", settings, 1, lambda _: [tensor for scatter in moments[1::2] for tensor in basis_of(scatter)]
        )
        means, vectors, squares = [total / forget for total in moments[::2]], bases[::2], bases[1::2]

        def ranges(k: int, rows: Tensor) -> State:
            return [ranges_of((rows - means[k]) @ vectors[k][:, : self.directions], self.quantile)]

        visits = [("forget", i) for i in range(forget)] + [("retain", i) for i in range(retain)]
        found = preparation.fold(
            "input_ranges",
            [*settings, self.directions, self.quantile],
            len(visits),
            lambda number: visit(*visits[number], ranges),
            concatenate=True,
        )

        seen = min(forget * sizes["forget"], images["forget"])

        def constants(k: int, layer: nn.Linear) -> Layer:
            z_min, z_max = found[k][:forget, :2].mean(dim=0)
            lo, hi = found[k][:, 2].amin(dim=0), found[k][:, 3].amax(dim=0)
            first, rest = vectors[k][:, : self.directions], vectors[k][:, self.directions :]
            singular = (squares[k][self.directions :] * images["forget"] / seen).sqrt()
            bias = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
            near, far = torch.stack([z_min, lo, z_max, hi], dim=1), torch.stack([lo, z_min, hi, z_max], dim=1)
            return Layer(layer.weight.detach(), bias, means[k][:, None], first, rest * singular, near, far)

        kinds: dict[tuple[torch.Size, bool], dict[str, Layer]] = {}
        for k, (name, layer) in enumerate(layers.items()):
            kind = layer.weight.shape, f"{name}.bias" in task.weights
            kinds.setdefault(kind, {})[name] = constants(k, layer)
        self.groups = [
            (list(group), Layer(*map(torch.stack, zip(*group.values(), strict=True)))) for group in kinds.values()
        ]

    # -- steps ---------------------------------------------------------------------------------------------------

    def losses(self, task: Task, forget: LabelledImages | None, retain: LabelledImages | None) -> Losses:
        assert forget is not None
        loss = relabelling_loss(task, forget, next_retain_labels(task, forget.labels), self.forget_dropout)
        return Losses(loss, self.protection(task))

    def protection(self, task: Task) -> Tensor:
        """Compute the mean of R over all layers. Layers of one shape share their kernels."""
        total, count, weights = task.forget_labels.new_zeros((), dtype=torch.float32), 0, task.weights
        for names, layer in self.groups:
            moved = torch.stack([weights[f"{name}.weight"] for name in names]) - layer.weight
            shift = (moved @ layer.mean)[..., 0]
            if f"{names[0]}.bias" in weights:
                shift = shift + torch.stack([weights[f"{name}.bias"] for name in names]) - layer.bias
            first, rest = moved @ layer.first, moved @ layer.rest
            bounds = first.relu() @ layer.near - (-first).relu() @ layer.far
            mean = shift.square().mean() + 4 * bounds.square().mean() + rest.square().sum() / max(rest.numel(), 1)
            total, count = total + len(names) * mean, count + len(names)
        return total / count

    def backward(self, task: Task, losses: Losses) -> None:
        """Set the gradients of all other weights to 0, before the norm is clipped."""
        super().backward(task, losses)
        ours = {f"{name}.{kind}" for names, _ in self.groups for name in names for kind in ("weight", "bias")}
        others = [weight.grad for name, weight in task.weights.items() if name not in ours and weight.grad is not None]
        if others:
            torch._foreach_zero_(others)


def moments_of(rows: Tensor) -> State:
    """Return the mean `[in]` and the scatter Σ (x − mean) (x − mean)ᵀ `[in, in]` of rows x `[rows, in]`."""
    mean = rows.mean(dim=0)
    centred = rows - mean
    return [mean, centred.T @ centred]


def basis_of(scatter: Tensor) -> State:
    """Return the right singular vectors as columns, `[in, in]`, and the squared singular values, descending.

    R depends on the signs of the vectors, which are arbitrary: the largest component is positive.
    """
    squares, vectors = torch.linalg.eigh(scatter)
    signs = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True)).sign()
    return [(vectors * signs).flip(1), squares.flip(0).clamp(min=0)]


def ranges_of(z: Tensor, quantile: float) -> Tensor:
    """Return both quantiles, the minimum and the maximum of each column of z `[rows, k]`: `[1, 4, k]`."""
    ordered = z.sort(dim=0).values

    def at(share: float) -> Tensor:  # torch.quantile takes at most 2²⁴ numbers
        place = share * (len(ordered) - 1)
        return torch.lerp(ordered[math.floor(place)], ordered[math.ceil(place)], place % 1)

    return torch.stack([at(quantile), at(1 - quantile), ordered[0], ordered[-1]])[None]
