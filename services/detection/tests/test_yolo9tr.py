"""YOLO9tr against its golden data: keys, maps, fusing; and what its attention reaches."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fovea.errors import InvalidOption
from services.detection.boxes.geometry import decode
from services.detection.layers import AveragedConv, Conv, PositionAttention, RepConv, RepElan, fuse_batch_norms
from services.detection.tests.filling import checksum, filled, picture, read
from shared.registry import network

SIZES = ("s", "l")
STEM = {"s": "yolov9tr.nc7", "l": "yolov9tr-l.nc7"}


def _statistics(golden: dict[str, Any]) -> dict[str, np.ndarray]:
    return {key.removeprefix("bn:"): value for key, value in golden.items() if key.startswith("bn:")}


@pytest.fixture(scope="module")
def official():
    made = {}
    for size in SIZES:
        golden = read(f"yolo9tr-{size}.arrays")
        net = filled(
            network("yolo9tr", classes=7, size=size), _statistics(golden), (".dfl.conv.weight", ".dfl2.conv.weight")
        )
        made[size] = (net, golden, picture(STEM[size], (1, 3, 256, 320)))
    return made.__getitem__


@pytest.mark.parametrize("size", SIZES)
def test_keys_are_the_official_ones(size, official):
    net, golden, _ = official(size)
    rows = [f"{key} {'x'.join(map(str, value.shape))}" for key, value in net.state_dict().items()]
    assert rows == golden["keys"].tolist()


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_maps_equal_the_published_ones_and_the_served_branch_gives_their_boxes(size, official):
    net, golden, x = official(size)
    assert checksum(x) == golden["in_crc"][0]
    for branch, maps in zip(("main", "aux"), net(x), strict=True):
        for level, found in enumerate(maps):
            np.testing.assert_allclose(found[..., ::3, ::3].numpy(), golden[f"raw_{branch}_{level}"], atol=5e-4)
        _same_boxes(decode(maps, 7), golden[branch])
    pruned = network("yolo9tr", classes=7, size=size, branch="main").eval()
    kept = pruned.state_dict().keys()
    pruned.load_state_dict({key: value for key, value in net.state_dict().items() if key in kept})
    assert torch.equal(pruned(x)[0][0], net(x)[0][0])
    assert pruned(x)[1] is None
    _same_boxes(fuse_batch_norms(pruned).predictions(x), golden["main"])


def _same_boxes(found: torch.Tensor, golden: np.ndarray) -> None:
    np.testing.assert_allclose(found[:, :4, ::7].numpy(), golden[:, :4], atol=0.02)
    np.testing.assert_allclose(found[:, 4:, ::7].numpy(), golden[:, 4:], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("size", "reaches"), [("s", False), ("l", True)])
def test_attention_reaches_the_answer_of_l_only(size, reaches, official):
    net, _, x = official(size)
    main, auxiliary = net(x)
    silent = network("yolo9tr", classes=7, size=size).eval()
    silent.load_state_dict(net.state_dict())
    for block in silent.modules():
        if isinstance(block, PositionAttention):
            for parameter in block.parameters():
                parameter.zero_()
    main_without, auxiliary_without = silent(x)
    assert torch.equal(main[0], main_without[0]) is not reaches
    assert not torch.equal(auxiliary[0], auxiliary_without[0])


def test_sides_and_widths_that_do_not_fit_are_refused():
    net = network("yolo9tr", classes=1, width=0.0625).eval()
    with pytest.raises(InvalidOption, match="multiples of 32"):
        net(torch.zeros(1, 3, 40, 64))
    with pytest.raises(InvalidOption, match="splits channels"):
        network("yolo9tr", width=0.3)


BLOCKS: list[tuple[nn.Module, int]] = [
    (Conv(8, 8, 3), 8), (Conv(8, 8, 3, groups=8, active=False), 8), (RepConv(8, 12), 8), (AveragedConv(8, 4), 8),
    (RepElan(8, 12, 8, 4, depth=1), 8), (PositionAttention(16), 16),
]  # fmt: skip


@pytest.mark.parametrize(("block", "channels"), BLOCKS, ids=lambda value: type(value).__name__)
@torch.no_grad()
def test_fusing_changes_nothing_but_the_steps(block, channels):
    block = filled(block)
    x = torch.randn(2, channels, 12, 10)
    once = fuse_batch_norms(block)
    assert torch.allclose(once(x), block(x), atol=1e-5)
    assert torch.allclose(fuse_batch_norms(once)(x), once(x))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in once.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in block.modules())
