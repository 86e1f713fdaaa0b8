"""The classifier: two small networks of one architecture, one of C classes and one whose class C is "noise"."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from safemax_pl.classifier.architectures import ARCHITECTURES
from safemax_pl.common import untrusted
from safemax_pl.common.errors import UserError, unknown
from safemax_pl.common.files import atomic, file_digest, not_finite, to_json
from safemax_pl.common.network_limits import check_count, check_sizes, check_weights
from safemax_pl.common.precision import full_precision
from safemax_pl.config.prerequisites import how_to_make, no_classifier
from safemax_pl.data.batch import from_uint8
from safemax_pl.data.datamodule import ForgetRetainDataModule


class Verdict(NamedTuple):
    """What the classifier says: `plain` `[B, C]` and `noise_aware` `[B, C + 1]` logits, `features` `[B, F]`."""

    plain: Tensor
    noise_aware: Tensor
    features: Tensor

    def of(self, rows: Tensor) -> "Verdict":
        """The same of some rows, by a mask `[B]`."""
        return Verdict(*(part[rows] for part in self))


TEMPERATURES = (0.1, 10.0)  # legal range; `calibrate` clamps to it


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
        """Classifier uint8 images `[B, C, H, W]`, in full precision; training calls the two networks themselves."""
        x = from_uint8(images)
        logits, features = self.plain(x)
        return Verdict(logits / self.temperature, self.noise_aware(x)[0], features)

    def summary(self) -> dict[str, Any]:
        """Identify a classifier in a protocol, by the hash of its weights and its temperature."""
        return {"hash": self.digest, "temperature": self.temperature.item()}

    @classmethod
    def described_by(cls, config: dict[str, Any], path: Path) -> Callable[[], "Classifier"]:
        """Return a constructor for the networks that a config.json describes.

        Raises:
            UserError: for sizes outside the legal ranges.
        """
        settings = {"name": "ResNet"} | config["architecture"]  # before 0.3.0 there was no other
        architecture = partial(ARCHITECTURES[settings.pop("name")], **settings)
        check_sizes(path, settings)
        make = partial(cls, config["class_names"], tuple(config["image_shape"]), architecture)
        try:
            with torch.device("meta"):
                check_count(path, make())
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return make

    def save(self, folder: Path, info: dict[str, Any]) -> None:
        """Write `model.safetensors` and `config.json` into `folder`, atomically."""
        config = {
            "class_names": self.class_names,
            "image_shape": self.image_shape,
            "architecture": self.architecture,
            "info": info,
        }
        if (wrong := not_finite(self.state_dict())) is not None:
            raise UserError(f"the classifier's weights {wrong} are not finite: train it with a lower optimizer.lr")
        text = to_json(config, f"{folder}/config.json", indent=2)
        with atomic(folder) as part:
            part.mkdir()
            save_file(
                {name: tensor.contiguous() for name, tensor in self.state_dict().items()}, part / "model.safetensors"
            )
            (part / "config.json").write_text(text + "\n")

    @classmethod
    def load(cls, path: str | Path, data: ForgetRetainDataModule, role: str = "classifier") -> "Classifier":
        """Read a classifier in eval mode and without gradients, and check that it belongs to `data`.

        Args:
            path: its folder.
            data: whose classes and images it classifiers.
            role: "classifier" or "second_classifier"; errors name the experiment that trains it.

        Raises:
            UserError: when it is missing or damaged, or was trained on other classes or images.
        """
        folder = Path(path)
        if not (folder / "config.json").exists():
            raise UserError(no_classifier(role, folder, data.name, data.path))
        hint = how_to_make(role, data.name, data.path)
        try:
            config = untrusted.read_json(folder / "config.json", f"the classifier can't be read: {hint}")
            if config["class_names"] != data.class_names or tuple(config["image_shape"]) != data.image_shape:
                raise UserError(
                    f"the classifier at {folder} is for {len(config['class_names'])} classes "
                    f"({', '.join(config['class_names'][:4])}, ...) at {tuple(config['image_shape'])}; {data.name} has "
                    f"{data.num_classes} ({', '.join(data.class_names[:4])}, ...) at {data.image_shape}: {hint}"
                )
            said = {"fingerprint": config["info"].get("data"), "content": config["info"].get("content")}
            if said["fingerprint"] and not data.source.holds(said):
                raise UserError(
                    f"the classifier at {folder} was trained on other data (fingerprint {said['fingerprint']}; "
                    f"{data.name} at data.path={data.path} has {data.source.fingerprint}), though the classes have the "
                    f"same names: {hint}"
                )
            make = cls.described_by(config, folder / "config.json")
            check_weights(folder / "model.safetensors")
            classifier = make()
            state = load_file(folder / "model.safetensors")
            if (wrong := not_finite(state)) is not None:
                raise UserError(f"the classifier at {folder} has weights that are not finite ({wrong}): {hint}")
            classifier.load_state_dict(state)
            classifier.info = dict(config["info"])
            if not TEMPERATURES[0] * 0.999 <= classifier.temperature.item() <= TEMPERATURES[1] * 1.001:  # in float16
                raise ValueError("its temperature is out of range")
        except (
            OSError,
            KeyError,
            RuntimeError,
            SafetensorError,
            ValueError,
            TypeError,
            AttributeError,
            ArithmeticError,
            AssertionError,
        ) as error:
            raise UserError(f"the classifier at {folder} can't be read ({type(error).__name__}): {hint}") from error
        classifier.digest = file_digest(folder / "model.safetensors")
        return classifier.eval().requires_grad_(False)
