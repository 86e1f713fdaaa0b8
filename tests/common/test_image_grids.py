import numpy as np

from safemax_pl.common.figures import panels
from safemax_pl.common.image_grids import image_grid, tiled


def test_images_are_side_by_side_with_white_between():
    images = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1, 1).repeat(8, 3).repeat(8, 4)
    picture = tiled(images)
    assert picture.shape == (18, 27, 1)
    assert picture[::9, ::9, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (picture[8] == 255).all() and (picture[:, 8] == 255).all()


def test_names_stand_at_the_middle_of_their_images():
    images = np.zeros((2, 3, 3, 8, 8), dtype=np.uint8)
    _, (axis,) = panels(1)
    image_grid(axis, [("a", images), ("b", images)], ["x", "y", "z"])
    assert axis.get_xticks().tolist() == [4, 13, 22]  # images of eight pixels, a gap of one
    first, second = axis.get_yticks()
    assert first == 8.5 and second - first == 18 + 3  # blocks of two rows are set apart by a third of a cell
    assert axis.images[0].get_array().shape == (42, 27, 3)
