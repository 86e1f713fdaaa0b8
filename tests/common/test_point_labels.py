from itertools import combinations

from matplotlib.text import Annotation

from safemax_pl.common.figures import panels
from safemax_pl.common.point_labels import label_points


def test_names_of_close_points_cover_each_other_nowhere_and_stay_inside():
    figure, (axis,) = panels(1)
    points = [(f"method {i}", 0.5 + 0.01 * i, 0.5 + 0.005 * i) for i in range(6)] + [("corner", 1.0, 1.0)]
    axis.plot([0, 1], [0, 1], ".")
    label_points(figure, axis, points)
    figure.draw_without_rendering()
    texts = [text for text in axis.texts if isinstance(text, Annotation)]
    assert [text.get_text() for text in texts] == [name for name, *_ in points]
    boxes = [text.get_bbox_patch() or super(Annotation, text).get_window_extent() for text in texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    frame = axis.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and box.y1 <= frame.y1 for box in boxes)


def test_names_cover_no_level_line():
    figure, (axis,) = panels(1)
    line = axis.axhline(0.5)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    label_points(figure, axis, [("on the line", 0.5, 0.5)])
    figure.draw_without_rendering()
    (text,) = axis.texts
    assert not super(Annotation, text).get_window_extent().overlaps(line.get_window_extent())
