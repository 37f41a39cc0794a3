"""PSNR and SSIM: against scikit-image, at the ends of their ranges, and independent of the bands they work in."""

import math

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from services.vision_restoration import metrics
from services.vision_restoration.metrics import psnr, ssim


def pictures(height: int = 64, width: int = 48, noise: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    first = rng.integers(0, 256, (height // 8, width // 8, 3)).repeat(8, axis=0).repeat(8, axis=1)
    second = (first + rng.integers(-noise, noise + 1, first.shape)).clip(0, 255)
    return first.astype(np.uint8), second.astype(np.uint8)


def test_psnr_is_that_of_its_formula():
    first = np.full((20, 30, 3), 100, np.uint8)
    assert psnr(first, first + 5) == pytest.approx(10 * math.log10(255**2 / 25))


def test_equal_pictures_are_infinitely_alike():
    first, _ = pictures()
    assert psnr(first, first) == math.inf
    assert ssim(first, first) == pytest.approx(1)


def test_ssim_equals_an_independent_implementation():
    first, second = pictures()
    full = structural_similarity(
        first,
        second,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        full=True,
    )[1]
    assert ssim(first, second) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-7)


def test_bands_change_nothing(monkeypatch):
    first, second = pictures()
    whole = psnr(first, second), ssim(first, second)
    monkeypatch.setattr(metrics, "_BAND", 7 * 48)
    assert (psnr(first, second), ssim(first, second)) == pytest.approx(whole, abs=1e-9)


def test_pictures_of_other_sizes_are_refused():
    first, second = pictures()
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match="differ in size"):
            measure(first, second[:-1])


def test_ssim_needs_room_for_its_window():
    with pytest.raises(ValueError, match="11 pixels, got 10×48"):
        ssim(*(picture[:10] for picture in pictures()))
