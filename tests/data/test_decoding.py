import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, PngImagePlugin

from safemax_pl.common.errors import UserError
from safemax_pl.data.decoding import EncodedSplit, WrongSize, decode, decode_all

RAMP = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
PHOTO = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
ARROW = np.zeros((6, 8, 3), dtype=np.uint8)
ARROW[0], ARROW[:, 0] = 255, 100  # nothing maps it onto itself


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(content: bytes | Path, channels: int = 3, size: tuple[int, int] = (8, 8), **options: Any) -> np.ndarray:
    """`[H, W, C]`"""
    return decode(content, "photo", (channels, *size), False, **options).permute(1, 2, 0).numpy()


# -- bit depth ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        ("PNG", Image.fromarray(RAMP)),
        ("TIFF", Image.fromarray(RAMP)),
        ("TIFF", Image.frombytes("I;16B", (8, 8), RAMP.astype(">u2").tobytes())),
        ("PPM", Image.fromarray(RAMP)),
        ("JPEG2000", Image.fromarray(RAMP)),
    ],
    ids=["png", "tiff", "big-endian tiff", "pgm", "jpeg 2000"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_to_8(kind, image, channels):
    seen: Counter[str] = Counter()
    found = pixels(encoded(image, kind), channels, seen=seen)
    assert found[0, 0, 0] == 0 and found[-1, -1, 0] == 255
    np.testing.assert_array_equal(found, np.round(RAMP / 257)[..., None].repeat(channels, -1))
    assert seen["of 16 bits, scaled to 8 (65535 becomes 255)"] == 1


def test_12_bits_in_16_are_pointed_out():
    seen: Counter[str] = Counter()
    pixels(encoded(Image.fromarray(RAMP // 16)), seen=seen)
    assert any("multiply them by 16" in note for note in seen)


def test_a_colour_image_of_16_bits_keeps_its_range():
    header = b"P6 8 8 65535\n"
    found = pixels(header + RAMP.astype(">u2").repeat(3).tobytes())
    assert found[0, 0].tolist() == [0, 0, 0] and found[-1, -1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize("largest", [1, 255, 65535])
def test_pixels_of_unknown_range_are_refused(dtype, largest):
    image = Image.fromarray(np.linspace(0, largest, 64).reshape(8, 8).astype(dtype))
    with pytest.raises(UserError, match=r"photo has (float|32-bit integer) pixels.*save it with 8 bits"):
        pixels(encoded(image, "TIFF"))


def test_one_bit_is_black_and_white():
    image = Image.fromarray(PHOTO[..., 0] > 127)
    assert pixels(encoded(image), 1)[..., 0].tolist() == (255 * (PHOTO[..., 0] > 127)).tolist()


# -- colour ------------------------------------------------------------------------------------------------------


def transparent(mode: str) -> Image.Image:
    """Opaque red above, invisible blue below."""
    image = Image.new("RGBA", (8, 8), (0, 0, 255, 0))
    ImageDraw.Draw(image).rectangle((0, 0, 7, 3), (255, 0, 0, 255))
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize(
    ("kind", "mode", "channels"),
    [("PNG", "RGBA", 3), ("WEBP", "RGBA", 1), ("TIFF", "RGBA", 3), ("GIF", "RGBA", 1), ("PNG", "LA", 3)],
)
def test_what_is_transparent_is_white(kind, mode, channels):
    seen: Counter[str] = Counter()
    options = {"lossless": True} if kind == "WEBP" else {}
    found = pixels(encoded(transparent(mode), kind, **options), channels, seen=seen)
    assert (found[4:] == 255).all() and (found[:4, :, -1] < 100).all()
    assert seen["with transparency, laid on white"] == 1


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_a_colour_that_stands_for_transparency_is_white(mode):
    image = Image.new(mode, (8, 8), 0)
    colour: Any = (0, 0, 0) if mode == "RGB" else 0
    assert (pixels(encoded(image, transparency=colour)) == 255).all()
    assert (pixels(encoded(image)) == 0).all()


def test_half_transparent_is_half_white():
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert set(pixels(encoded(image)).ravel().tolist()) == {127}


def test_an_opaque_alpha_channel_changes_nothing():
    seen: Counter[str] = Counter()
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(PHOTO).convert("RGBA")), seen=seen), PHOTO)
    assert not seen


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_print_colours_become_screen_colours(kind):
    found = pixels(encoded(Image.new("RGB", (8, 8), "red").convert("CMYK"), kind))
    assert (found[..., 0] > 250).all() and (found[..., 1:] < 5).all()


def test_a_palette_is_looked_up():
    image = Image.fromarray(PHOTO).quantize(64)
    np.testing.assert_array_equal(pixels(encoded(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("mode", "channels", "note"), [("L", 3, "grey, repeated"), ("RGB", 1, "in colour, made grey")])
def test_a_change_of_channels_is_counted(mode, channels, note):
    seen: Counter[str] = Counter()
    pixels(encoded(Image.fromarray(PHOTO).convert(mode)), channels, seen=seen)
    assert [text.startswith(note) for text in seen] == [True]


# -- orientation, frames, size -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "orientation", "expected"),
    [
        ("PNG", 1, ARROW),
        ("TIFF", 2, ARROW[:, ::-1]),
        ("WEBP", 3, ARROW[::-1, ::-1]),
        ("PNG", 4, ARROW[::-1]),
        ("TIFF", 5, ARROW.transpose(1, 0, 2)),
        ("WEBP", 6, np.rot90(ARROW, -1)),
        ("PNG", 7, np.rot90(ARROW, 2).transpose(1, 0, 2)),
        ("TIFF", 8, np.rot90(ARROW)),
    ],
)
def test_images_are_turned_as_their_exif_says(kind, orientation, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(Image.fromarray(ARROW), kind, exif=exif, **options)
    np.testing.assert_array_equal(pixels(content, size=expected.shape[:2]), expected)


def test_a_photo_with_damaged_exif_is_taken_as_it_is():
    content = encoded(Image.fromarray(PHOTO), exif=b"Exif\0\0no such header")
    np.testing.assert_array_equal(pixels(content), PHOTO)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_several_frames_the_first_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    seen: Counter[str] = Counter()
    assert (pixels(encoded(frames[0], kind, save_all=True, append_images=frames[1:]), seen=seen) == 255).all()
    assert seen["animated or of several pages: the first is taken"] == 1


def test_another_size_is_refused_after_the_image_is_turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    with pytest.raises(WrongSize, match="6x8"):
        pixels(encoded(Image.fromarray(ARROW), exif=exif))


# -- what is no image --------------------------------------------------------------------------------------------


def with_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    return encoded(Image.fromarray(PHOTO), pnginfo=info)


BROKEN = {
    "empty": b"",
    "text": b"version https://git-lfs.github.com/spec/v1\n",
    "zeros": b"\0" * 500,
    "half a png": encoded(Image.fromarray(PHOTO))[:100],
    "half a jpeg": encoded(Image.fromarray(PHOTO), "JPEG")[:-200],
    "half a gif": encoded(Image.fromarray(PHOTO), "GIF")[:60],
    "half a webp": encoded(Image.fromarray(PHOTO), "WEBP")[:40],
    "half a tiff": encoded(Image.fromarray(PHOTO), "TIFF")[:60],
    "a damaged png": encoded(Image.fromarray(PHOTO)).replace(b"IDAT", b"IDAX"),
    "a huge text": with_text(),
    "postscript, which Ghostscript would run": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_what_is_no_image_is_named(content):
    with pytest.raises(UserError, match=r"^cannot decode the image photo: .*repair or remove it$") as caught:
        pixels(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [120, 160], ids=["above Pillow's limit", "above twice the limit"])
def test_a_decompression_bomb_is_named(monkeypatch, side):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100 * 100)
    content = encoded(Image.new("L", (side, side)))
    split = EncodedSplit([0], [-1], lambda: iter([("bomb.png", content)]))
    with pytest.raises(UserError, match=r"cannot decode the image bomb\.png: Image size .* repair or remove it"):
        decode_all(split, (1, 8, 8), True, Counter(), "decoding")


def test_a_split_is_decoded_in_order():
    contents = [encoded(Image.new("L", (8, 8), level)) for level in range(5)]
    split = EncodedSplit([0] * 5, [-1] * 5, lambda: iter([("", content) for content in contents]))
    images = decode_all(split, (1, 8, 8), False, Counter(), "decoding")
    assert images.shape == (5, 1, 8, 8) and images.dtype == torch.uint8
    assert images[:, 0, 0, 0].tolist() == list(range(5))
