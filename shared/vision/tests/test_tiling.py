"""Tiles add up to the whole: geometry, mirrored borders, exactness given context, and memory of one window."""

import tracemalloc
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from shared.vision.tiling import mirror_positions, padded_length, tiled, windows

sides = st.integers(1, 300)
cores = st.sampled_from([32, 64, 96])
contexts = st.sampled_from([0, 32, 64])


@given(height=sides, width=sides, core=cores, context=contexts)
def test_cores_cover_every_pixel_once_and_windows_stay_on_the_grid(height, width, core, context):
    seen = np.zeros((height, width), int)
    for window in windows(height, width, core=core, context=context):
        seen[window.rows, window.columns] += 1
        for value in (window.top, window.left, window.height, window.width):
            assert value % 32 == 0
        assert max(window.height, window.width) <= core + 2 * context
        assert window.top + window.height <= padded_length(height)
        assert window.left + window.width <= padded_length(width)
    assert (seen == 1).all()


@given(length=st.integers(1, 40), beyond=st.integers(0, 100))
def test_mirroring_repeats_as_often_as_needed(length, beyond):
    found = mirror_positions(0, length + beyond, length)
    expected = np.pad(np.arange(length), (0, beyond), mode="reflect" if length > 1 else "edge")
    assert found.tolist() == expected.tolist()


@given(size=st.tuples(st.integers(1, 150), st.integers(1, 150)))
def test_with_context_enough_tiles_equal_the_padded_whole(size):
    torch.manual_seed(1)
    weight = torch.randn(3, 3, 9, 9)

    def network(x: torch.Tensor) -> torch.Tensor:
        cells = F.interpolate(F.avg_pool2d(x, 32), size=x.shape[2:], mode="nearest")
        return F.conv2d(x, weight, padding=4) + cells

    image = torch.rand(1, 3, *size)
    rows, columns = (mirror_positions(0, padded_length(side), side) for side in size)
    whole = network(image[:, :, rows][:, :, :, columns])[:, :, : size[0], : size[1]]
    torch.testing.assert_close(tiled(network, image, core=32, context=32), whole, rtol=0, atol=1e-4)


def test_windows_run_one_after_another_none_is_kept_and_what_is_not_on_the_grid_is_refused():
    for core, context in ((500, 128), (512, 100), (0, 32), (512, -32), (-32, 0)):
        with pytest.raises(ValueError, match="multiples of 32"):
            tiled(lambda x: x, torch.zeros(1, 3, 64, 64), core=core, context=context)
    with pytest.raises(ValueError, match="no pixels"):
        tiled(lambda x: x, torch.zeros(1, 3, 0, 5))
    windows_seen: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        windows_seen.append(weakref.ref(x))
        alive.append(sum(one() is not None for one in windows_seen))
        return x * 2

    tiled(network, torch.rand(1, 3, 256, 256), core=32, context=32)
    assert len(alive) == 64
    assert max(alive) <= 2


def test_geometry_of_a_huge_picture_costs_nothing():
    tracemalloc.start()
    count = sum(1 for _ in windows(43_200, 76_800, core=1024, context=128))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 43 * 75
    assert peak < 200_000
