"""The judge: two small residual networks, one of C classes and one whose class C is "noise"."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from safemax_pl.data import ForgetRetainDataModule
from safemax_pl.errors import UserError
from safemax_pl.files import atomic, file_digest
from safemax_pl.images import from_uint8


class Verdict(NamedTuple):
    """What the classifier says: `plain` `[B, C]` and `noise_aware` `[B, C + 1]` logits, `features` `[B, F]`."""

    plain: Tensor
    noise_aware: Tensor
    features: Tensor


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (https://arxiv.org/abs/1512.03385), `[B, in, H, W]` to `[B, out, ...]`."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.conv_1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm_1 = nn.BatchNorm2d(outside)
        self.conv_2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm_2 = nn.BatchNorm2d(outside)
        same = inside == outside and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.norm_1(self.conv_1(x)))
        return F.relu(self.norm_2(self.conv_2(hidden)) + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network that also shows its penultimate features.

    Args:
        channels: of the images.
        num_outputs: number of logits.
        widths: channels of each stage; every stage but the first halves the resolution.
        blocks: residual blocks per stage.
    """

    def __init__(self, channels: int, num_outputs: int, widths: list[int], blocks: int):
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        before = [widths[0], *widths[:-1]]
        self.stages = nn.Sequential(
            *(
                ResidualBlock(inside if i == 0 else outside, outside, 2 if i == 0 and stage > 0 else 1)
                for stage, (inside, outside) in enumerate(zip(before, widths, strict=True))
                for i in range(blocks)
            )
        )
        self.head = nn.Linear(widths[-1], num_outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images `[B, C, H, W]` in [−1, 1] to logits `[B, num_outputs]` and features `[B, widths[-1]]`."""
        features = self.stages(self.stem(x)).mean(dim=(2, 3))
        return self.head(features), features


class Classifier(nn.Module):
    """Two independent networks, so that teaching one of them about noise leaves the literature's `ua` as it is.

    The plain network is calibrated by a temperature (https://arxiv.org/abs/1706.04599); its features carry the FID.

    Args:
        class_names: of the C classes.
        image_shape: (channels, height, width).
        widths, blocks: of both networks.
    """

    temperature: Tensor

    def __init__(self, class_names: list[str], image_shape: tuple[int, int, int], widths: list[int], blocks: int):
        super().__init__()
        self.class_names, self.image_shape = list(class_names), tuple(image_shape)
        self.architecture = {"widths": list(widths), "blocks": blocks}
        self.plain = ResNet(image_shape[0], len(class_names), widths, blocks)
        self.noise_aware = ResNet(image_shape[0], len(class_names) + 1, widths, blocks)
        self.register_buffer("temperature", torch.ones(()))
        self.info: dict[str, Any] = {}  # how it was made and how it scores, as recorded beside the weights
        self.digest = ""

    def forward(self, images: Tensor) -> Verdict:
        """Judge uint8 images `[B, C, H, W]`."""
        x = from_uint8(images)
        logits, features = self.plain(x)
        return Verdict(logits / self.temperature, self.noise_aware(x)[0], features)

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
    def load(cls, path: str | Path, data: ForgetRetainDataModule) -> "Classifier":
        """Read a classifier in eval mode and without gradients, and check that it belongs to `data`.

        Raises:
            UserError: when it is missing or damaged, or was trained on other classes or images.
        """
        folder = Path(path)
        hint = f"train one with `python -m safemax_pl.fit_classifier experiment={data.name}_classifier`"
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
            classifier = cls(config["class_names"], tuple(config["image_shape"]), **config["architecture"])
            classifier.load_state_dict(load_file(folder / "model.safetensors"))
            classifier.info = config["info"]
        except (OSError, KeyError, RuntimeError, SafetensorError, ValueError, TypeError) as error:
            raise UserError(f"the classifier at {folder} can't be read ({type(error).__name__}): {hint}") from error
        classifier.digest = file_digest(folder / "model.safetensors")
        return classifier.eval().requires_grad_(False)
