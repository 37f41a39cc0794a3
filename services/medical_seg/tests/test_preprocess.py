"""Pictures go down as PIL squashes them; maps come up as torch interpolates them, and without torch."""

import subprocess
import sys

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from services.medical_seg import preprocess
from services.medical_seg.preprocess import resize_and_normalise, upsample, upsample_in_strips


def by_torch(values, height, width):
    tensor = torch.from_numpy(values)[None, None]
    return F.interpolate(tensor, size=(height, width), mode="bilinear", align_corners=False)[0, 0].numpy()


@given(st.integers(2, 40), st.integers(1, 90), st.integers(1, 90), st.integers(0, 9))
def test_any_size_is_enlarged_as_torch_does(source, height, width, seed):
    values = np.random.default_rng(seed).standard_normal((source, source)).astype(np.float32) * 4
    assert np.abs(upsample(values, height, width) - by_torch(values, height, width)).max() <= 1e-4


def test_bands_are_the_whole(monkeypatch):
    values = np.random.default_rng(1).standard_normal((20, 20)).astype(np.float32)
    whole = upsample(values, 101, 70)
    monkeypatch.setattr(preprocess, "_STRIP", 7 * 70)
    bands = list(upsample_in_strips(values, 101, 70))
    assert [rows.stop - rows.start for rows, _ in bands] == [7] * 14 + [3]
    assert np.allclose(np.concatenate([part for _, part in bands]), whole, atol=1e-6)


def test_picture_is_squashed_and_normalised_as_published():
    pixels = np.random.default_rng(2).integers(0, 256, (70, 110, 3), dtype=np.uint8)
    small = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR)) / 255
    expected = (small - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    found = resize_and_normalise(pixels, 32)
    assert (found.shape, found.dtype) == ((3, 32, 32), np.float32)
    assert np.abs(found - expected.transpose(2, 0, 1)).max() < 1e-6


def test_resizing_loads_no_torch():
    script = "import sys, services.medical_seg.preprocess; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
