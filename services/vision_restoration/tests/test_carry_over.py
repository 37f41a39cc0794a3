"""What is changed in a small copy reaches the whole picture, whose own detail stays."""

import cv2
import numpy as np
import pytest

from services.vision_restoration import carry_over as module
from services.vision_restoration.carry_over import carry_over, shrink, working_size
from services.vision_restoration.metrics import psnr


def textured(height: int, width: int, seed: int = 3) -> np.ndarray:
    """A picture (h, w, 3) in 0..1 with smooth shades and detail of single pixels."""
    rng = np.random.default_rng(seed)
    shades = cv2.resize(rng.uniform(0.3, 0.7, (7, 9, 3)).astype(np.float32), (width, height))
    return (shades + rng.uniform(-0.1, 0.1, (height, width, 3))).astype(np.float32)


@pytest.mark.parametrize("white", [255, 65_535])
def test_a_reflection_taken_out_of_a_copy_is_taken_out_of_the_picture(white):
    clean = textured(480, 720)
    layer = cv2.GaussianBlur(textured(480, 720, seed=4), (0, 0), 20) * np.float32([0.3, 0.2, 0.1])
    kind = np.uint8 if white == 255 else np.uint16
    seen, wanted = (np.rint(one.clip(0, 1) * white).astype(kind) for one in (clean * 0.8 + layer, clean))
    copy, restored = (shrink(one, (120, 180)) for one in (seen, wanted))
    result = carry_over(seen, copy, restored)
    assert (result.dtype, result.shape) == (kind, seen.shape)
    before, after, enlarged = (
        psnr(np.uint8(one.astype(np.float32) * (255 / white)), np.uint8(wanted.astype(np.float32) * (255 / white)))
        for one in (seen, result, cv2.resize(restored, (720, 480)))
    )
    assert after > before + 8
    assert after > enlarged + 8, "the picture's own detail is lost"


def test_nothing_changes_where_the_copy_stays():
    seen = np.uint8(textured(300, 500) * 255)
    copy = shrink(seen, (90, 150))
    assert np.abs(carry_over(seen, copy, copy).astype(int) - seen).max() <= 1


def test_bands_do_not_show(monkeypatch):
    seen = np.uint8(textured(300, 200) * 255)
    copy = shrink(seen, (100, 70))
    changed = np.uint8(copy * np.linspace(0.5, 1, 100)[:, None, None])
    whole = carry_over(seen, copy, changed)
    monkeypatch.setattr(module, "_BAND", 7)
    np.testing.assert_array_equal(carry_over(seen, copy, changed), whole)


@pytest.mark.parametrize(
    ("height", "width", "resolution", "size"),
    [
        (3000, 4000, "auto", (1225, 1633)),
        (3000, 4000, "full", (3000, 4000)),
        (3000, 4000, "preview", (433, 577)),
        (1000, 2000, "auto", (1000, 2000)),
        (400, 500, "preview", (400, 500)),
        (1, 4_000_000, "auto", (1, 2_828_427)),
    ],
)
def test_copies_keep_the_shape_and_are_no_larger_than_wanted(height, width, resolution, size):
    assert working_size(height, width, resolution) == size
