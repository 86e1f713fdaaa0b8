"""Decoding of image files to 8-bit pixels: formats, bit depth, transparency, orientation."""

import io
import warnings
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from rich.progress import track
from torch import Tensor

from safemax_pl.common.errors import UserError, first_line
from safemax_pl.data.encoded import EncodedSplit

# Formats that Pillow reads, without EPS, which runs Ghostscript, and formats without a decoder
FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".pbm", ".pgm", ".ppm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "AVIF": (".avif",),
    "SGI": (".sgi", ".rgb", ".bw"),
    "PCX": (".pcx",),
    "TGA": (".tga",),  # last: TGA files have no signature
}
ENDINGS = {ending for endings in FORMATS.values() for ending in endings}
MAX_HEADERS = 1000  # images whose headers are read to find settings that fit
GREY_MODES = ("1", "L", "LA", "La", "I", "F")


class WrongSize(Exception):
    """Image of another size than the settings.

    Attributes:
        width, height: of the image, in pixels.
    """

    def __init__(self, width: int, height: int):
        super().__init__(f"{width}x{height}")
        self.width, self.height = width, height


def decode_all(
    split: EncodedSplit, shape: tuple[int, int, int], resize: bool, seen: Counter[str], description: str
) -> Tensor:
    """Decode the images of a split to uint8 `[N, C, H, W]`, with a progress bar.

    Args:
        split: encoded images.
        shape, resize, seen: as in `decode`.
        description: of the progress bar.

    Raises:
        UserError: as in `decode`, and for an image of another size; it names all settings that fit.
    """
    images = torch.empty((len(split.labels), *shape), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # Pillow only warns up to twice its limit
        for i, (name, encoded) in enumerate(track(split.images(), description=description, total=len(split.labels))):
            try:
                images[i] = decode(encoded, name, shape, resize, seen)
            except WrongSize as wrong:
                raise _wrong_size(name, wrong, split, shape) from None
    return images


def _wrong_size(name: str, wrong: WrongSize, split: EncodedSplit, shape: tuple[int, int, int]) -> UserError:
    """Name the settings that fit, from the headers of the first images."""
    headers = [size_of(encoded) for _, encoded in islice(split.images(), MAX_HEADERS)]
    sizes = {header[:2] for header in headers if header} | {(wrong.width, wrong.height)}
    channels = 1 if all(header[2] for header in headers if header) else 3
    size = f"{shape[2]}x{shape[1]}"
    resize = f"data.resize=true to scale and crop every image to {size}"
    if len(sizes) > 1:
        remedy = f"set {resize}, as images have several sizes"
    elif wrong.width != wrong.height:
        remedy = f"set {resize}, as images must be square"
    else:
        remedy = f"set data.image_size={wrong.width} data.channels={channels}, or {resize}"
    return UserError(f"the image {name} is {wrong.width}x{wrong.height}, expected {size}: {remedy}")


def decode(
    encoded: bytes | Path, name: str, shape: tuple[int, int, int], resize: bool, seen: Counter[str] | None = None
) -> Tensor:
    """Decode one image to uint8 `[C, H, W]`.

    - Orientation follows the EXIF tag, as in `datasets` and image viewers.
    - Transparent pixels are laid on white. `Image.convert` would drop alpha and uncover hidden colours.
    - 16-bit grey is scaled, 65535 to 255. `Image.convert` would clip it at 255.
    - Only the first frame of an animation is read.

    Args:
        encoded: the file's content, or its path.
        name: of the image, for messages.
        shape: (channels, height, width). Grey is repeated to RGB, and RGB is converted to grey, to fit.
        resize: scale and centre-crop an image of another size.
        seen: counts every change made to an image beyond plain decoding.

    Raises:
        WrongSize: for another size, without `resize`.
        UserError: for a file that Pillow can't read, and for 32-bit and float pixels, whose range is unknown.
    """
    seen = Counter() if seen is None else seen
    channels, height, width = shape
    try:
        with _opened(encoded) as file:
            image, grey = _converted(file, name, shape, resize, seen)
    except (UserError, WrongSize):
        raise
    except UnidentifiedImageError as error:
        raise UserError(
            f"cannot decode the image {name}: its format is none of {', '.join(FORMATS)}; repair or remove it"
        ) from error
    # Damaged files make Pillow raise anything, from struct.error to MemoryError
    except Exception as error:
        raise UserError(f"cannot decode the image {name}: {first_line(error)}; repair or remove it") from error
    if grey and channels == 3:
        seen["grey, repeated in three channels (data.channels=1 keeps one)"] += 1
    if not grey and channels == 1:
        seen["in colour, made grey (data.channels=3 keeps colours)"] += 1
    if image.size != (width, height):
        seen[f"scaled and cropped to {width}x{height}"] += 1
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(height, width, -1).permute(2, 0, 1)


def _converted(
    file: Image.Image, name: str, shape: tuple[int, int, int], resize: bool, seen: Counter[str]
) -> tuple[Image.Image, bool]:
    """Read the pixels as upright 8-bit "L" or "RGB" without transparency; also return whether the file is grey."""
    channels, height, width = shape
    file.load()
    if getattr(file, "is_animated", False) and file.format != "MPO":  # MPO: a photo with its depth map
        seen["animated or of several pages: the first is taken"] += 1
    scaled = file.mode == "I" and file.format in ("PNG", "PPM")  # Pillow reads these with 16 bits
    image = _eight_bits(_upright(file, seen), name, scaled, seen)
    if image.size != (width, height) and not resize:
        raise WrongSize(*image.size)
    return _on_white(image, seen).convert("L" if channels == 1 else "RGB"), _is_grey(file.mode)


def size_of(encoded: bytes | Path) -> tuple[int, int, bool] | None:
    """Read width, height and whether the image is grey from the header; None if it can't be read."""
    try:
        with _opened(encoded) as file:
            return *file.size, _is_grey(file.mode)
    except Exception:  # the result only improves the error about another image
        return None


def _opened(encoded: bytes | Path) -> Image.Image:
    return Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded, formats=list(FORMATS))


def _is_grey(mode: str) -> bool:
    return mode in GREY_MODES or mode.startswith("I;16")


def _upright(image: Image.Image, seen: Counter[str]) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        upright = ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF beside good pixels
        seen["with damaged EXIF, taken as they are stored"] += 1
        return image
    if orientation != 1:
        seen["turned as their EXIF orientation says"] += 1
    return upright


def _eight_bits(image: Image.Image, name: str, scaled: bool, seen: Counter[str]) -> Image.Image:
    if image.mode.startswith("I;16") or scaled:
        wide = np.asarray(image).astype(np.int64)
        seen["of 16 bits, scaled to 8 (65535 becomes 255)"] += 1
        if wide.max() < 4096:
            seen["of 16 bits with no value above 4095, now nearly black: multiply them by 16 if they hold 12 bits"] += 1
        return Image.fromarray(((wide * 255 + 32767) // 65535).clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "float" if image.mode == "F" else "32-bit integer"
        raise UserError(
            f"the image {name} has {kind} pixels, whose range is not known: save it with 8 bits (0 to 255) or with "
            "16 (0 to 65535)"
        )
    return image


def _on_white(image: Image.Image, seen: Counter[str]) -> Image.Image:
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema()[0] == 255:
        return image
    seen["with transparency, laid on white"] += 1
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
