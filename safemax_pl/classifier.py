"""The judge: two small networks of one architecture, one of C classes and one whose class C is "noise"."""

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from safemax_pl.architectures import ARCHITECTURES
from safemax_pl.data import ForgetRetainDataModule
from safemax_pl.errors import UserError, unknown
from safemax_pl.files import atomic, file_digest
from safemax_pl.images import from_uint8
from safemax_pl.precision import full_precision


class Verdict(NamedTuple):
    """What the classifier says: `plain` `[B, C]` and `noise_aware` `[B, C + 1]` logits, `features` `[B, F]`."""

    plain: Tensor
    noise_aware: Tensor
    features: Tensor

    def of(self, rows: Tensor) -> "Verdict":
        """The same of some rows, by a mask `[B]`."""
        return Verdict(*(part[rows] for part in self))


class Classifier(nn.Module):
    """Two independent networks, so that teaching one of them about noise leaves the literature's `ua` as it is.

    The plain network is calibrated by a temperature (https://arxiv.org/abs/1706.04599); its features carry the FID.

    Args:
        class_names: of the C classes.
        image_shape: (channels, height, width).
        architecture: makes both networks; one of `ARCHITECTURES` with all but its first two arguments.

    Raises:
        UserError: for an architecture that could not be read again.
    """

    temperature: Tensor

    def __init__(self, class_names: list[str], image_shape: tuple[int, int, int], architecture: partial[nn.Module]):
        super().__init__()
        name = architecture.func.__name__  # type: ignore[attr-defined]
        if ARCHITECTURES.get(name) is not architecture.func:
            raise unknown("architecture", name, ARCHITECTURES)
        self.class_names, self.image_shape = list(class_names), tuple(image_shape)
        self.architecture = {"name": name, **architecture.keywords}
        self.plain = architecture(image_shape, len(class_names))
        self.noise_aware = architecture(image_shape, len(class_names) + 1)
        self.register_buffer("temperature", torch.ones(()))
        self.info: dict[str, Any] = {}  # how it was made and how it scores, as recorded beside the weights
        self.digest = ""

    @full_precision()
    def forward(self, images: Tensor) -> Verdict:
        """Judge uint8 images `[B, C, H, W]`, in full precision; training calls the two networks themselves."""
        x = from_uint8(images)
        logits, features = self.plain(x)
        return Verdict(logits / self.temperature, self.noise_aware(x)[0], features)

    def summary(self) -> dict[str, Any]:
        """What a protocol says of a judge: its hash, its accuracies on real test images, its temperature."""
        scores = self.info.get("scores", {})
        return {"hash": self.digest} | {
            name: scores.get(name) for name in ("accuracy", "accuracy_noise_aware", "temperature")
        }

    def save(self, folder: Path, info: dict[str, Any]) -> None:
        """Write `model.safetensors` and `config.json` into `folder`, atomically."""
        config = {
            "class_names": self.class_names,
            "image_shape": self.image_shape,
            "architecture": self.architecture,
            "info": info,
        }
        with atomic(folder) as part:
            part.mkdir()
            save_file(
                {name: tensor.contiguous() for name, tensor in self.state_dict().items()}, part / "model.safetensors"
            )
            (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path, data: ForgetRetainDataModule, role: str = "classifier") -> "Classifier":
        """Read a classifier in eval mode and without gradients, and check that it belongs to `data`.

        Args:
            path: its folder.
            data: whose classes and images it judges.
            role: "classifier" or "second_classifier"; errors name the experiment that trains it.

        Raises:
            UserError: when it is missing or damaged, or was trained on other classes or images.
        """
        folder = Path(path)
        hint = f"train one with `python -m safemax_pl.fit_classifier experiment={data.name}_{role}`"
        if not (folder / "config.json").exists():
            raise UserError(f"no classifier at {folder} (expected config.json and model.safetensors): {hint}")
        try:
            config = json.loads((folder / "config.json").read_text())
            if config["class_names"] != data.class_names or tuple(config["image_shape"]) != data.image_shape:
                raise UserError(
                    f"the classifier at {folder} is for {len(config['class_names'])} classes "
                    f"({', '.join(config['class_names'][:4])}, ...) at {tuple(config['image_shape'])}; {data.name} has "
                    f"{data.num_classes} ({', '.join(data.class_names[:4])}, ...) at {data.image_shape}: {hint}"
                )
            settings = {"name": "ResNet"} | config["architecture"]  # before 0.3.0 there was no other
            architecture = partial(ARCHITECTURES[settings.pop("name")], **settings)
            classifier = cls(config["class_names"], tuple(config["image_shape"]), architecture)
            classifier.load_state_dict(load_file(folder / "model.safetensors"))
            classifier.info = config["info"]
        except (OSError, KeyError, RuntimeError, SafetensorError, ValueError, TypeError) as error:
            raise UserError(f"the classifier at {folder} can't be read ({type(error).__name__}): {hint}") from error
        classifier.digest = file_digest(folder / "model.safetensors")
        return classifier.eval().requires_grad_(False)
