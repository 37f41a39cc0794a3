"""Boxes as numbers: from raw maps to boxes, how much two overlap, and which of many stay.

Knows tensors and pixels of the network's input; knows no picture file and no wire type. Boxes are x1, y1, x2, y2
unless a name says `centred`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

EPS = 1e-7


def cells(maps: Sequence[Tensor], strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Centres (a, 2) of all cells in units of their own cell, and the stride (a, 1) of each, row by row."""
    points, scales = [], []
    for level, stride in zip(maps, strides, strict=True):
        height, width = level.shape[-2:]
        y = torch.arange(height, device=level.device, dtype=level.dtype) + 0.5
        x = torch.arange(width, device=level.device, dtype=level.dtype) + 0.5
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)
        points.append(grid)
        scales.append(torch.full_like(grid[:, :1], stride))
    return torch.cat(points), torch.cat(scales)


def distances(logits: Tensor, bins: int) -> Tensor:
    """Expected left, top, right, bottom (…, 4) in cells, of logits (…, 4 * bins)."""
    weight = logits.view(*logits.shape[:-1], 4, bins).softmax(dim=-1)
    return torch.matmul(weight, torch.arange(bins, device=logits.device, dtype=logits.dtype))


def decode(maps: Sequence[Tensor], classes: int, strides: Sequence[int] = (8, 16, 32), bins: int = 16) -> Tensor:
    """Predictions (n, 4 + classes, a) of raw maps (n, 4 * bins + classes, h, w), finest level first.

    The first four rows are centre x, centre y, width, height in pixels of the input; the others scores in 0..1.
    """
    centres, scale = cells(maps, strides)
    flat = torch.cat([level.flatten(2) for level in maps], dim=2).transpose(1, 2)
    box, kinds = torch.split(flat, [4 * bins, classes], dim=2)
    left_top, right_bottom = distances(box, bins).chunk(2, dim=-1)
    centred = torch.cat([centres + (right_bottom - left_top) / 2, left_top + right_bottom], dim=-1) * scale
    return torch.cat([centred, kinds.sigmoid()], dim=-1).transpose(1, 2)


def corners(centred: Tensor) -> Tensor:
    """Centre and size (…, 4) as x1, y1, x2, y2."""
    centre, size = centred.chunk(2, dim=-1)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def complete_iou(a: Tensor, b: Tensor, eps: float = EPS) -> Tensor:
    """CIoU of boxes (…, 4), pair by pair: IoU less the distance of centres and the difference of aspect ratios."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    (w1, h1), (w2, h2) = ((box[..., 2] - box[..., 0] + eps, box[..., 3] - box[..., 1] + eps) for box in (a, b))
    iou = shared / (w1 * h1 + w2 * h2 - shared + eps)
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    diagonal = hull.square().sum(dim=-1) + eps
    apart = (b[..., :2] + b[..., 2:] - a[..., :2] - a[..., 2:]).square().sum(dim=-1) / 4
    v = 4 / math.pi**2 * (torch.atan(w2 / h2) - torch.atan(w1 / h1)).square()
    with torch.no_grad():
        alpha = v / (v - iou + 1 + eps)
    return iou - (apart / diagonal + v * alpha)
