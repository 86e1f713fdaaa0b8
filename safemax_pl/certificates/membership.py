"""Membership: can training images of the forgotten classes be told from test images?"""

from typing import Any

import torch
from torch import Tensor

from safemax_pl.certificates.exam import CHUNK, Exam
from safemax_pl.certificates.roc import auc
from safemax_pl.common import rng
from safemax_pl.common.precision import full_precision
from safemax_pl.common.rng import Stream
from safemax_pl.data.batch import from_uint8
from safemax_pl.diffusion.unet import Model


def membership(exam: Exam) -> dict[str, Any]:
    """Attack every model, and return the AUC of the attack with its confidence interval.

    Two scores of an image x_0 of class c are tried at every timestep: SimA, −‖ε_θ(x_0, t, c)‖, a single query of the
    clean image (https://arxiv.org/abs/2509.25003), and the loss −E ‖ε − ε_θ(x_t, t, c)‖². Score and timestep are those
    with the largest AUC on the original. So the AUC of the original is biased upwards, and that of the other models is
    not. This is done for the class's label and for the null label, each at half of the error rate.

    Returns:
        `members` and `others`: numbers of training and test images; `attacks`: label ("class", "null") -> `score`, `t`,
        and `auc`: model -> `value`, `low`, `high`.
    """
    data, settings = exam.evaluator.data, exam.settings
    images, labels, counts = [], [], []
    for split, part in (("train", data.source.train), ("test", data.source.test)):
        rows = data.rows(split, "forget")[: settings.members]
        images.append(part.images[rows])
        labels.append(part.labels[rows])
        counts.append(len(rows))
    null = all(model.null_label is not None for model in exam.models.values())
    kinds = ["class", "null"] if null else ["class"]
    error = settings.alpha / len(kinds)
    found = {}
    for kind in kinds:
        scores = {
            name: _scores(exam, model, torch.cat(images), torch.cat(labels), kind)
            for name, model in exam.models.items()
        }
        areas = {
            key: auc(s[: counts[0]].numpy(), s[counts[0] :].numpy(), error) for key, s in scores["original"].items()
        }
        best = max(areas, key=lambda key: areas[key].value)
        measured = {
            name: auc(s[best][: counts[0]].numpy(), s[best][counts[0] :].numpy(), error) for name, s in scores.items()
        }
        found[kind] = {"score": best[0], "t": best[1], "auc": {name: one._asdict() for name, one in measured.items()}}
    return {"members": counts[0], "others": counts[1], "attacks": found}


@torch.no_grad()
@full_precision()
def _scores(exam: Exam, model: Model, images: Tensor, labels: Tensor, kind: str) -> dict[tuple[str, float], Tensor]:
    """Return (score, t / T) -> scores `[N]`, double, of uint8 images `[N, C, H, W]`; larger for members."""
    device = exam.evaluator.device
    model = model.to(device).eval()
    diffusion = model.diffusion
    if kind == "null":
        assert model.null_label is not None
        labels = torch.full_like(labels, model.null_label)
    keys = rng.combine(torch.arange(len(labels)), exam.first_seed("membership"))
    found: dict[tuple[str, float], list[Tensor]] = {}
    for rows in torch.arange(len(labels)).split(CHUNK):
        x_0, asked = from_uint8(images[rows].to(device)), labels[rows].to(device)
        for share in exam.settings.timesteps:
            t = torch.full_like(asked, int(share * diffusion.num_timesteps))
            clean = diffusion.eps_of(model(x_0, t, asked), x_0, t)
            found.setdefault(("SimA", share), []).append(-_norm(clean))
            loss = torch.zeros(len(rows), dtype=torch.double)
            for draw in range(exam.settings.noise_draws):
                eps = rng.normal(rng.combine(keys[rows].to(device), draw), Stream.NOISE, tuple(x_0.shape[1:]))
                x_t = diffusion.add_noise(x_0, t, eps)
                loss += _norm(eps - diffusion.eps_of(model(x_t, t, asked), x_t, t)).square()
            found.setdefault(("loss", share), []).append(-loss)
    return {key: torch.cat(parts) for key, parts in found.items()}


def _norm(values: Tensor) -> Tensor:
    return values.double().flatten(1).norm(dim=1).cpu()
