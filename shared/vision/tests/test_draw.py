"""Drawing marks what it should, leaves the rest and the original alone, and what is encoded can be read again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.vision.decode import decode
from shared.vision.draw import ENCODINGS, draw_label, encode, outline_mask, side_by_side, tint_mask

GREY = np.full((40, 60, 3), 100, np.uint8)
MASK = np.zeros((40, 60), bool)
MASK[10:30, 20:50] = True


@pytest.fixture(autouse=True)
def original_is_left_alone():
    yield
    assert (GREY == 100).all()


def test_tint_mixes_inside_the_mask_only_and_an_outline_is_as_wide_as_asked_and_inside():
    found = tint_mask(GREY, MASK, (200, 0, 100), 0.25)
    assert (found[MASK] == [125, 75, 100]).all()
    assert (found[~MASK] == 100).all()
    for width in (1, 3):
        found = outline_mask(GREY, MASK, (1, 2, 3), width)
        changed = (found != 100).any(axis=2)
        assert not (changed & ~MASK).any()
        assert changed.sum() == 20 * 30 - (20 - 2 * width) * (30 - 2 * width)
        assert (found[changed] == [1, 2, 3]).all()


@given(x=st.floats(-500, 500), y=st.floats(-500, 500), text=st.text(st.characters(codec="latin-1"), max_size=12))
def test_label_is_drawn_inside_wherever_it_is_put(x, y, text):
    text = "".join(c for c in text if c.isprintable())
    page = np.full((60, 300, 3), 100, np.uint8)
    found = draw_label(page, [(x, y, text)], (255, 255, 0))
    assert found.shape == page.shape
    assert ((found == [255, 255, 0]).all(axis=2)).sum() > 60


def test_row_holds_every_picture_in_its_own_size():
    row = side_by_side([GREY, np.zeros((20, 10, 3), np.uint8)], gap=4)
    wanted = np.full((40, 74, 3), 255, np.uint8)
    wanted[:, :60], wanted[:20, 64:] = 100, 0
    np.testing.assert_array_equal(row, wanted)
    with pytest.raises(ValueError, match="no picture"):
        side_by_side([])


@pytest.mark.parametrize("media", ENCODINGS)
def test_encoded_picture_is_read_again(media):
    found = decode(encode(tint_mask(GREY, MASK), media, quality=95, icc=b"profile"))
    assert (f"image/{found.format.lower()}", found.icc) == (media, b"profile")
    assert np.abs(found.pixels.astype(int) - tint_mask(GREY, MASK)).max() <= (0 if media == "image/png" else 40)


def test_grey_stays_grey_png_is_exact_and_an_unknown_encoding_refused():
    found = decode(encode(MASK.astype(np.uint8) * 255))
    assert found.mode == "L"
    assert ((found.pixels[..., 0] == 255) == MASK).all()
    with pytest.raises(ValueError, match="image/gif is not one of"):
        encode(GREY, "image/gif")
