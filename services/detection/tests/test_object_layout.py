"""Objects as a shelf: rows, columns, crops and the drawn path."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import InvalidOption
from services.detection.gaze.object_layout import (
    crop_objects,
    draw_scanpath,
    layout_from_boxes,
    layout_from_grid,
    render_layout,
)


def test_boxes_become_rows_from_top_to_bottom_and_left_to_right():
    boxes = [(50, 103, 90, 150), (0, 0, 40, 50), (0, 100, 40, 150), (50, 4, 90, 52), (100, 98, 140, 149)]
    shelf = layout_from_boxes(boxes)
    assert (shelf.layout, shelf.grid) == ([[1, 3, None], [2, 0, 4]], (2, 3))
    assert shelf.centres[0].tolist() == [70, 126.5]


def test_a_slanted_row_does_not_chain_into_one():
    boxes = [(60 * i, 12 * i, 60 * i + 50, 12 * i + 50) for i in range(6)]
    assert [len([item for item in row if item is not None]) for row in layout_from_boxes(boxes).layout] == [3, 3]


@given(st.integers(1, 4), st.integers(1, 6), st.randoms())
def test_a_jittered_grid_is_found_again(rows, columns, random):
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    random.shuffle(cells)
    boxes = []
    for row, column in cells:
        x, y = 100 * column + random.uniform(-10, 10), 100 * row + random.uniform(-10, 10)
        boxes.append((x, y, x + 60, y + 60))
    shelf = layout_from_boxes(boxes)
    assert shelf.grid == (rows, columns)
    assert [cells[item] for item in shelf.ids] == sorted(cells)


def test_a_grid_that_does_not_hold_the_crops_is_refused():
    assert layout_from_grid(6, (2, 3), (48, 32)).layout == [[0, 1, 2], [3, 4, 5]]
    for grid in ((2, 2), (0, 6), (3, 3)):
        with pytest.raises(InvalidOption):
            layout_from_grid(6, grid, (48, 32))


def test_crops_are_what_is_inside_of_each_box_and_are_squashed():
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[20:60, 30:70] = (255, 0, 0)
    found = crop_objects(pixels, [(30, 20, 70, 60), (-20, -20, 20, 20)], (48, 32))
    assert found.shape == (2, 48, 32, 3)
    np.testing.assert_allclose(found[0, 2:-2, 2:-2], np.broadcast_to([1, 0, 0], (44, 28, 3)), atol=1e-6)
    assert not found[1].any()


@pytest.mark.parametrize("box", [(10, 10, 10, 40), (200, 200, 300, 300), (50, 50, 20, 20)])
def test_boxes_without_a_pixel_are_refused(box):
    with pytest.raises(InvalidOption, match="Box 0"):
        crop_objects(np.zeros((100, 100, 3), np.uint8), [box], (48, 32))


def test_a_page_holds_its_crops_where_they_stand():
    crops = np.stack([np.full((4, 2, 3), value, np.float32) for value in (0.0, 0.5, 1.0)])
    page = render_layout(crops, layout_from_grid(3, (1, 3), (4, 2)))
    assert page[0, :, 0].tolist() == [0, 0, 128, 128, 255, 255]


def test_the_path_is_drawn_and_small_pages_are_enlarged():
    page = np.full((96, 96, 3), 255, np.uint8)
    drawn = draw_scanpath(page, [(20, 20), (70, 70), (70, 70)], (70, 70))
    assert min(drawn.shape[:2]) >= 640
    assert (drawn == (214, 40, 57)).all(2).any()
    assert (drawn == (0, 160, 90)).all(2).any()
    assert (page == 255).all()
