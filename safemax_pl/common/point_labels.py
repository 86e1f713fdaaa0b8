"""Names beside the points of a chart, placed where they can be read."""

from collections.abc import Sequence
from itertools import product
from math import cos, hypot, radians, sin
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from safemax_pl.common.figures import GREY, SMALL

THIN = 25  # pixels: maximum extent of markers and lines that names must not cover


def label_points(figure: Figure, axis: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Write a name beside every point, where it covers no other name, point or level line, as far as there is room.

    Args:
        figure: that holds `axis`.
        axis: with its final limits and scales.
        points: name, x and y of each point.
    """
    figure.draw_without_rendering()  # the layout decides where the points are
    frame, pixels = axis.get_window_extent(), figure.dpi / 72
    places = axis.transData.transform([(x, y) for _, x, y in points])
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    taken += [box for line in axis.lines if min((box := line.get_window_extent()).size) < THIN]
    for (name, x, y), (left, bottom) in zip(points, places, strict=True):
        size = figure.text(0, 0, name, fontsize=SMALL)
        width, height = size.get_window_extent().size
        size.remove()
        tried: list[tuple[int, int, int, tuple[float, float], Bbox]] = []
        for radius, degrees in product((8, 18, 30, 45), (15, 165, -15, -165, 75, -75)):
            offset = radius * cos(radians(degrees)), radius * sin(radians(degrees))
            x0 = left + offset[0] * pixels - width * (offset[0] < 0)
            box = Bbox.from_bounds(x0, bottom + offset[1] * pixels - height / 2, width, height)
            outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
            tried.append((box.count_overlaps(taken) + 10 * outside, radius, len(tried), offset, box))
        *_, offset, box = min(tried, key=lambda one: one[:3])
        taken.append(box)
        line = {"arrowstyle": "-", "lw": 0.5, "color": GREY} if hypot(*offset) > 10 else None
        side = "left" if offset[0] > 0 else "right"
        look: dict[str, Any] = {"fontsize": SMALL, "ha": side, "va": "center", "arrowprops": line}
        axis.annotate(name, (x, y), offset, textcoords="offset points", **look).set_in_layout(False)
