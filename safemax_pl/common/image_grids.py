"""Grids of images in figures."""

from collections.abc import Sequence

import numpy as np
from einops import rearrange
from matplotlib.axes import Axes

from safemax_pl.common.figures import SMALL


def tiled(images: np.ndarray) -> np.ndarray:
    """Put images side by side on white.

    Args:
        images: uint8 `[rows, columns, C, H, W]`.

    Returns:
        `[rows · (H + gap), columns · (W + gap), C]` with a gap of an eighth of W, at least one pixel.
    """
    gap = max(images.shape[-1] // 8, 1)
    framed = np.pad(images, ((0, 0), (0, 0), (0, 0), (0, gap), (0, gap)), constant_values=255)
    return rearrange(framed, "row column c h w -> (row h) (column w) c")


def image_grid(axis: Axes, blocks: Sequence[tuple[str, np.ndarray]], columns: Sequence[str] = ()) -> None:
    """Show blocks of images below each other, each with its name on the left.

    Args:
        axis: has no frame, grid or ticks afterwards.
        blocks: names and uint8 `[rows, columns, C, H, W]`; blocks of several rows are set apart.
        columns: names above the columns; none if empty.
    """
    names, images = zip(*blocks, strict=True)
    size = images[0].shape[-1]
    cell = size + max(size // 8, 1)
    apart = cell // 3 if len(images) > 1 and max(map(len, images)) > 1 else 0
    rows = [np.pad(tiled(block), ((0, apart), (0, 0), (0, 0)), constant_values=255) for block in images]
    picture = np.concatenate(rows)
    picture = picture.squeeze(-1) if picture.shape[-1] == 1 else picture
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    heights = np.array([len(row) for row in rows])
    centres = np.cumsum(heights) - heights / 2 - (apart + cell - size) / 2
    axis.set_yticks(centres, names, fontsize=SMALL)
    axis.set_xticks((np.arange(len(columns)) + 0.5) * cell - (cell - size) / 2, list(columns), fontsize=SMALL)
    axis.tick_params(length=0)
