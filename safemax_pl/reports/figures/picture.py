"""A picture of a report: a PNG file with its alternative text and its caption."""

from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from PIL import Image

from safemax_pl.common.escaping import slug
from safemax_pl.common.figures import DPI, save_figure


class Picture(NamedTuple):
    """A PNG file with its texts.

    Attributes:
        path: of the file.
        alt: text in place of the picture.
        caption: text below it.
        width: in CSS pixels, at the figure's own size.
    """

    path: Path
    alt: str
    caption: str
    width: int


def save(figure: Figure, path: Path, alt: str, caption: str) -> Picture:
    """Write a figure and return its picture."""
    save_figure(figure, path)
    with Image.open(path) as image:
        return Picture(path, alt, caption, round(image.width * 96 / DPI))


def file_name(guidance: str, *parts: str) -> str:
    """Return the name of a picture at a guidance weight, such as w0-curve-drift.png."""
    return f"{'-'.join([slug(guidance.replace('=', '')), *parts])}.png"


def axis_label(metric: str) -> str:
    """Return the name of an axis, with the better direction."""
    return f"{metric} ({'higher' if metric == 'ua_noise_aware' else 'lower'} is better)"
