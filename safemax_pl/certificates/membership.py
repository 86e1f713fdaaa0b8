"""Membership: can training images of the forgotten classes be told from test images?"""

from typing import Any

import torch
from torch import Tensor

from safemax_pl.certificates.certification import CHUNK, Certification
from safemax_pl.certificates.roc import Auc, auc
from safemax_pl.common import rng
from safemax_pl.common.precision import full_precision
from safemax_pl.common.rng import Stream
from safemax_pl.data.batch import from_uint8
from safemax_pl.diffusion.unet import Model

Scores = dict[tuple[str, float], Tensor]  # (score, t / T) -> scores [N], double, larger for members


def attack_membership(certification: Certification) -> dict[str, Any]:
    """Attack every model, and return the AUC of the attack with its confidence interval.

    Two scores of an image x_0 of class c are tried at every timestep: SimA, −‖ε_θ(x_0, t, c)‖, a single query of the
    clean image (https://arxiv.org/abs/2509.25003), and the loss −E ‖ε − ε_θ(x_t, t, c)‖². The reported ones have the
    largest AUC on the original, the attacker's choice. As that choice uses the same images, intervals hold for all
    candidates at once. This is done for the class's label and for the null label.

    Returns:
        `members` and `others`: numbers of training and test images; `attacks`: label ("class", "null") -> `score`, `t`,
        and `auc`: model -> `value`, `low`, `high`.
    """
    settings = certification.settings
    members, others = images_of(certification, "train"), images_of(certification, "test")
    images, labels = (torch.cat(pair) for pair in zip(members, others, strict=True))
    is_member = torch.arange(len(labels)) < len(members[1])
    kinds = ["class", "null"] if certification.has_null else ["class"]
    error = settings.alpha / (len(kinds) * 2 * len(settings.timesteps))
    found = {}

    def area(scores: Tensor) -> Auc:
        chosen = [labels == label for label in labels.unique()]
        return auc([(scores[one & is_member].numpy(), scores[one & ~is_member].numpy()) for one in chosen], error)

    for kind in kinds:
        scores = {
            name: _scores(certification, model, images, labels, kind) for name, model in certification.models.items()
        }
        best = max(scores["original"], key=lambda key: area(scores["original"][key]).value)
        areas = {name: area(one[best])._asdict() for name, one in scores.items()}
        found[kind] = {"score": best[0], "t": best[1], "auc": areas}
    return {"members": len(members[1]), "others": len(others[1]), "attacks": found}


def images_of(certification: Certification, split: str) -> tuple[Tensor, Tensor]:
    """Return images and labels of the forgotten classes in a split, at most `settings.members`, equally many of each.

    The nonce decides which. Images that were held out to calibrate the classifier are no members if the fit left them
    out.
    """
    data = certification.evaluator.data
    part, rows = getattr(data.source, split), data.rows(split, "forget")
    if split == "train" and data.exclude_calibration:
        rows = rows[~data.calibration_mask()[rows]]
    order = rng.uniform(rng.combine(certification.first_seed(f"members {split}"), rows), Stream.ROW).argsort()
    each = max(certification.settings.members // len(data.forget_labels), 1)
    mine = [rows[order][part.labels[rows[order]] == label][:each] for label in data.forget_labels]
    chosen = torch.cat(mine)
    return part.images[chosen], part.labels[chosen]


@torch.no_grad()
@full_precision()
def _scores(certification: Certification, model: Model, images: Tensor, labels: Tensor, kind: str) -> Scores:
    """Return the scores of uint8 images `[N, C, H, W]`, with their labels or the null label."""
    device = certification.evaluator.device
    model = model.to(device).eval()
    diffusion = model.diffusion
    if kind == "null":
        assert model.null_label is not None
        labels = torch.full_like(labels, model.null_label)
    keys = rng.combine(torch.arange(len(labels)), certification.first_seed("membership"))
    found: dict[tuple[str, float], list[Tensor]] = {}
    for rows in torch.arange(len(labels)).split(CHUNK):
        x_0, given = from_uint8(images[rows].to(device)), labels[rows].to(device)
        for share in certification.settings.timesteps:
            t = torch.full_like(given, int(share * diffusion.num_timesteps))
            clean = diffusion.eps_of(model(x_0, t, given), x_0, t)
            found.setdefault(("SimA", share), []).append(-_norm(clean))
            loss = torch.zeros(len(rows), dtype=torch.double)
            for draw in range(certification.settings.noise_draws):
                eps = rng.normal(rng.combine(keys[rows].to(device), draw), Stream.NOISE, tuple(x_0.shape[1:]))
                x_t = diffusion.add_noise(x_0, t, eps)
                loss += _norm(eps - diffusion.eps_of(model(x_t, t, given), x_t, t)).square()
            found.setdefault(("loss", share), []).append(-loss)
    return {key: torch.cat(parts) for key, parts in found.items()}


def _norm(values: Tensor) -> Tensor:
    return values.double().flatten(1).norm(dim=1).cpu()
