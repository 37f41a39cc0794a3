"""Around the restorer: metrics, carry-over of what the network cannot see, tiles."""

import math

import cv2
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from fovea.api.restore import RestoreIn
from services.vision_restoration import carry_over as module
from services.vision_restoration import metrics
from services.vision_restoration.carry_over import carry_over, shrink, working_size
from services.vision_restoration.metrics import psnr, ssim
from services.vision_restoration.models.rrformer import RRFormerRestorer
from services.vision_restoration.tiled_inference import CONTEXT, plan_tiles, restore_by_tiles
from services.vision_restoration.weights_loading import build_artifacts, load_weights
from shared.engines.torch import TorchEngine
from shared.registry import CallContext


def pictures(height: int = 64, width: int = 48, noise: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    first = rng.integers(0, 256, (height // 8, width // 8, 3)).repeat(8, axis=0).repeat(8, axis=1)
    second = (first + rng.integers(-noise, noise + 1, first.shape)).clip(0, 255)
    return first.astype(np.uint8), second.astype(np.uint8)


def test_psnr_is_that_of_its_formula_ssim_of_an_independent_implementation_and_sizes_must_fit(monkeypatch):
    plain = np.full((20, 30, 3), 100, np.uint8)
    assert psnr(plain, plain + 5) == pytest.approx(10 * math.log10(255**2 / 25))
    first, second = pictures()
    assert (psnr(first, first), ssim(first, first)) == (math.inf, pytest.approx(1))
    full = structural_similarity(
        first, second, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255,
        full=True,
    )[1]  # fmt: skip
    assert ssim(first, second) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-7)
    whole = psnr(first, second), ssim(first, second)
    monkeypatch.setattr(metrics, "_BAND", 7 * 48)
    assert (psnr(first, second), ssim(first, second)) == pytest.approx(whole, abs=1e-9)
    first, second = pictures()
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match="differ in size"):
            measure(first, second[:-1])
    with pytest.raises(ValueError, match="11 pixels, got 10×48"):
        ssim(*(picture[:10] for picture in pictures()))


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
    pages = (seen, result, cv2.resize(restored, (720, 480)), wanted)
    *others, ideal = (np.uint8(page.astype(np.float32) * (255 / white)) for page in pages)
    before, after, enlarged = (psnr(page, ideal) for page in others)
    assert after > before + 8
    assert after > enlarged + 8, "the picture's own detail is lost"


def test_nothing_changes_where_the_copy_stays_and_bands_do_not_show(monkeypatch):
    seen = np.uint8(textured(300, 500) * 255)
    copy = shrink(seen, (90, 150))
    assert np.abs(carry_over(seen, copy, copy).astype(int) - seen).max() <= 1
    seen = np.uint8(textured(300, 200) * 255)
    copy = shrink(seen, (100, 70))
    changed = np.uint8(copy * np.linspace(0.5, 1, 100)[:, None, None])
    whole = carry_over(seen, copy, changed)
    monkeypatch.setattr(module, "_BAND", 7)
    np.testing.assert_array_equal(carry_over(seen, copy, changed), whole)


@pytest.mark.parametrize(("height", "width", "resolution", "size"), [
    (3000, 4000, "auto", (1225, 1633)), (3000, 4000, "full", (3000, 4000)), (3000, 4000, "preview", (433, 577)),
    (1000, 2000, "auto", (1000, 2000)), (400, 500, "preview", (400, 500)), (1, 4_000_000, "auto", (1, 2_828_427)),
])  # fmt: skip
def test_copies_keep_the_shape_and_are_no_larger_than_wanted(height, width, resolution, size):
    assert working_size(height, width, resolution) == size


@pytest.fixture(scope="module", params=CONTEXT)
def engine(request, tmp_path_factory):
    made = build_artifacts(load_weights(RRFormerRestorer.folder, tmp_path_factory.mktemp("none")), request.param, None)
    return request.param, TorchEngine(made.network(), made.inputs, made.outputs)


def test_tiles_of_the_demo_weights_equal_the_whole(engine):
    variant, network = engine
    pixels = np.random.default_rng(2).integers(0, 65_536, (8, 56, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint16)
    whole, pieces = (
        restore_by_tiles(
            network, pixels, plan_tiles(64, 448, variant, RestoreIn(image=b"", tile_core=core), 3600), CallContext(),
            lambda _done: None,
        )
        for core in (512, 64)
    )  # fmt: skip
    # In 16 bits a step is 1.5e-5 of white: the spec allows 1e-4.
    assert np.abs(whole.astype(int) - pieces).max() <= 7
