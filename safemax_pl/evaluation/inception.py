"""InceptionV3 of torch-fidelity, the network of FID in the literature (https://arxiv.org/abs/1706.08500)."""

import importlib
from pathlib import Path

import torch
from torch import Tensor, nn

from safemax_pl.common.errors import UserError, one_line
from safemax_pl.common.files import file_digest

FEATURES, LOGITS = 2048, 1008
CHUNK = 64  # images per batch; each needs tens of megabytes at 299×299
INSTALL = "pip install 'safemax_pl[fid]' installs it"


class Inception(nn.Module):
    """Inception network ported from TensorFlow, with TensorFlow's resizing to 299×299; frozen, in eval mode.

    Args:
        weights: a file with torch-fidelity's state dict, for machines without network; or "download".

    Attributes:
        digest: hash of the file.

    Raises:
        UserError: if torch-fidelity is not installed, or the weights are missing, unreadable or of another network.
    """

    def __init__(self, weights: str):
        super().__init__()
        try:
            torch_fidelity = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        except ImportError as error:
            raise UserError(
                f"evaluation.inception={weights} needs torch-fidelity ({error}): {INSTALL}, or set "
                "evaluation.inception=null"
            ) from error
        path = _downloaded(torch_fidelity.URL_INCEPTION_V3) if weights == "download" else Path(weights).expanduser()
        if not path.is_file():
            raise UserError(
                f"evaluation.inception={weights} is not a file: give the path of torch-fidelity's "
                f"{Path(torch_fidelity.URL_INCEPTION_V3).name}, download, or null"
            )
        try:
            # Check that the file holds no code, which torch-fidelity would run
            torch.load(path, map_location="cpu", weights_only=True)
            self.network = torch_fidelity.FeatureExtractorInceptionV3(
                "inception-v3-compat", [str(FEATURES), "logits_unbiased"], str(path)
            )
        except Exception as error:  # unpickling another file may raise any error
            raise UserError(
                f"evaluation.inception={weights} does not hold the weights of torch-fidelity's InceptionV3 "
                f"({one_line(error, 200)}): give {Path(torch_fidelity.URL_INCEPTION_V3).name}"
            ) from error
        self.digest = file_digest(path)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map uint8 images `[B, 1 or 3, H, W]` to features `[B, 2048]` and logits `[B, 1008]`; grey becomes RGB."""
        chunks = [self.network(chunk.expand(-1, 3, -1, -1)) for chunk in images.split(CHUNK)]
        features, logits = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        return features, logits


def _downloaded(url: str) -> Path:
    """Return the path of the file of `url` in torch's cache, downloading it if it is missing."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"evaluation.inception=download failed ({error}): fetch {url} on a machine with a network, and "
                "give its path"
            ) from error
    return path
