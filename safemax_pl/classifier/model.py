"""The classifier: two networks of one architecture, one with C classes and one with "noise" as class C."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from safemax_pl.classifier.architectures import ARCHITECTURES
from safemax_pl.common import untrusted
from safemax_pl.common.errors import UserError, unknown
from safemax_pl.common.files import atomic, file_digest, not_finite, to_json
from safemax_pl.common.network_limits import check_count, check_sizes, check_weights
from safemax_pl.common.precision import full_precision
from safemax_pl.common.untrusted import BAD_CONTENT
from safemax_pl.config.prerequisites import how_to_make, no_classifier
from safemax_pl.data.batch import from_uint8
from safemax_pl.data.datamodule import ForgetRetainDataModule


class Verdict(NamedTuple):
    """Outputs of a classifier.

    Attributes:
        plain: `[B, C]`, calibrated logits of the plain network.
        noise_aware: `[B, C + 1]`, logits of the noise-aware network; the last class is noise.
        features: `[B, F]`, penultimate features of the plain network.
    """

    plain: Tensor
    noise_aware: Tensor
    features: Tensor

    def of(self, rows: Tensor) -> "Verdict":
        """Select rows by a bool mask `[B]`."""
        return Verdict(*(part[rows] for part in self))


TEMPERATURES = (0.1, 10.0)  # legal range, to which `calibrate` clamps


class Classifier(nn.Module):
    """A plain and a noise-aware network, with separate weights.

    The plain network gives `ua` as in the literature, and the features for FID. A temperature calibrates it
    (https://arxiv.org/abs/1706.04599). The noise-aware network has the additional class "noise".

    Args:
        class_names: names of the C classes.
        image_shape: (channels, height, width).
        architecture: factory of both networks: one of `ARCHITECTURES` with all arguments but the first two.

    Raises:
        UserError: for an architecture outside `ARCHITECTURES`.

    Attributes:
        temperature: scalar by which the plain logits are divided.
        info: training settings and scores, as recorded beside the weights.
        digest: hash of the weights file, "" before `load`.
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
        self.info: dict[str, Any] = {}
        self.digest = ""

    @full_precision()
    def forward(self, images: Tensor) -> Verdict:
        """Classify uint8 images `[B, C, H, W]` in full precision. Training calls the two networks directly."""
        x = from_uint8(images)
        logits, features = self.plain(x)
        return Verdict(logits / self.temperature, self.noise_aware(x)[0], features)

    def summary(self) -> dict[str, Any]:
        """Return the hash of the weights and the temperature, which identify a classifier in a protocol."""
        return {"hash": self.digest, "temperature": self.temperature.item()}

    @classmethod
    def described_by(cls, config: dict[str, Any], path: Path) -> Callable[[], "Classifier"]:
        """Return a constructor for the classifier that a config.json describes.

        Args:
            config: content of the file.
            path: of the file, for errors.

        Raises:
            UserError: for sizes out of range, and for too many parameters.
        """
        settings = {"name": "ResNet"} | config["architecture"]  # files before 0.3.0 have no name
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
        """Write `model.safetensors` and `config.json` into `folder`, atomically.

        Args:
            folder: created or replaced.
            info: training settings and scores to record.

        Raises:
            UserError: if a weight is not finite.
        """
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
        """Load a classifier in eval mode and without gradients, and check that it was trained on `data`.

        Args:
            path: its folder.
            data: gives the classes, the image shape and the content hashes.
            role: "classifier" or "second_classifier". Errors name the experiment that trains it.

        Raises:
            UserError: for a missing or damaged folder, and for a classifier of other classes or images.
        """
        folder = Path(path)
        if not (folder / "config.json").exists():
            raise UserError(no_classifier(role, folder, data.name, data.path))
        hint = how_to_make(role, data.name, data.path)
        try:
            config = untrusted.read_json(folder / "config.json", f"the classifier can't be read: {hint}")
            _check_data(config, data, folder, hint)
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
        except BAD_CONTENT as error:
            raise UserError(f"the classifier at {folder} can't be read ({type(error).__name__}): {hint}") from error
        classifier.digest = file_digest(folder / "model.safetensors")
        return classifier.eval().requires_grad_(False)


def _check_data(config: dict[str, Any], data: ForgetRetainDataModule, folder: Path, hint: str) -> None:
    """Raise `UserError` unless a classifier's config.json names the classes, image shape and content of `data`."""
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
