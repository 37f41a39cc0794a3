"""Losses of anchor-free detectors: which cell learns which object, and how wrong its box and classes are.

Knows raw maps and targets; knows no network. Task-aligned assignment (TAL), distribution focal loss (DFL) and CIoU, as
YOLOv9 weighs them (section 4 of the description); the sums are over cells, so a caller sees them per batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from services.detection.boxes.geometry import cells, complete_iou, corners, distances

GAINS = (7.5, 0.5, 1.5)
"""Weights of box, class and distribution loss."""

AUXILIARY = 0.25
"""Weight of the auxiliary branch next to the main one."""

ALPHA, BETA, TOP = 0.5, 6.0, 10
"""Powers of score and overlap in the alignment, and cells per object."""

BINS = 16


@dataclass(frozen=True, slots=True)
class Assigned:
    """Targets of the cells of one picture: class scores (a, classes), and boxes x1, y1, x2, y2 (a, 4) in pixels.

    `chosen` (a,) says whether a cell has an object; where not, scores are 0 and boxes mean nothing.
    """

    scores: Tensor
    boxes: Tensor
    chosen: Tensor


@torch.no_grad()
def assign(scores: Tensor, boxes: Tensor, centres: Tensor, objects: Tensor) -> Assigned:
    """Give each object of a picture the cells that already suit it best, and each cell one object at most.

    Predicted scores are (a, classes) in 0..1, boxes (a, 4) and centres of cells (a, 2) in pixels; objects are class,
    x1, y1, x2, y2 in pixels (m, 5).
    """
    if not len(objects):
        nothing = torch.zeros_like(scores)
        return Assigned(nothing, torch.zeros_like(boxes), nothing.new_zeros(len(scores), dtype=torch.bool))
    kinds, truth = objects[:, 0].long(), objects[:, 1:]
    inside = torch.cat([centres - truth[:, None, :2], truth[:, None, 2:] - centres], dim=2).amin(dim=2) > 1e-9
    overlaps = complete_iou(truth[:, None], boxes).clamp(min=0)
    fit = scores.T[kinds].pow(ALPHA) * overlaps.pow(BETA) * inside
    best = fit.topk(min(TOP, fit.shape[1]), dim=1).indices
    claimed = torch.zeros_like(fit, dtype=torch.bool).scatter_(1, best, value=True) & inside
    rival = claimed.sum(dim=0) > 1
    winner = F.one_hot(overlaps.argmax(dim=0), len(truth)).T.bool()
    claimed = torch.where(rival, winner, claimed)
    fit, overlaps = fit * claimed, overlaps * claimed
    share = fit * overlaps.amax(dim=1, keepdim=True) / (fit.amax(dim=1, keepdim=True) + 1e-9)
    owner = claimed.float().argmax(dim=0)
    wanted = F.one_hot(kinds[owner], scores.shape[1]) * share.amax(dim=0)[:, None]
    return Assigned(wanted.to(scores.dtype), truth[owner], claimed.any(dim=0))


def detection_loss(
    maps: Sequence[Tensor], targets: Tensor, classes: int, strides: Sequence[int] = (8, 16, 32)
) -> tuple[Tensor, Tensor]:
    """Loss of one branch: the sum of the items times the batch, and the weighted items box, class, distribution.

    Args:
        maps: Raw maps (n, 64 + classes, h, w), finest first.
        targets: Rows picture, class, centre x, centre y, width, height; the last four in 0..1 of the input.
        classes: How many.
        strides: Pixels per cell of each map.
    """
    items = _branch(maps, targets, classes, strides) * torch.tensor(GAINS, device=maps[0].device)
    return items.sum() * len(maps[0]), items.detach()


def dual_detection_loss(
    main: Sequence[Tensor],
    auxiliary: Sequence[Tensor],
    targets: Tensor,
    classes: int,
    strides: Sequence[int] = (8, 16, 32),
) -> tuple[Tensor, Tensor]:
    """As `detection_loss`, of both branches, each with an assignment of its own; the auxiliary one counts a quarter."""
    both = _branch(main, targets, classes, strides) + AUXILIARY * _branch(auxiliary, targets, classes, strides)
    items = both * torch.tensor(GAINS, device=main[0].device)
    return items.sum() * len(main[0]), items.detach()


def _branch(maps: Sequence[Tensor], targets: Tensor, classes: int, strides: Sequence[int]) -> Tensor:
    """Box, class and distribution loss (3,), not yet weighted."""
    points, scale = cells(maps, strides)
    flat = torch.cat([level.flatten(2) for level in maps], dim=2).transpose(1, 2)
    sides, logits = torch.split(flat, [4 * BINS, classes], dim=2)
    left_top, right_bottom = distances(sides, BINS).chunk(2, dim=-1)
    boxes = torch.cat([points - left_top, points + right_bottom], dim=-1)
    made = [
        assign(score, box, points * scale, objects)
        for score, box, objects in zip(
            logits.detach().sigmoid(), boxes.detach() * scale, _objects(targets, maps[0], strides[0]), strict=True
        )
    ]
    wanted = torch.stack([each.scores for each in made])
    total = wanted.sum().clamp(min=1)
    kinds = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / total
    chosen = torch.stack([each.chosen for each in made])
    weight = wanted.sum(dim=2)[chosen]
    truth = (torch.stack([each.boxes for each in made]) / scale)[chosen]
    box = ((1 - complete_iou(boxes[chosen], truth)) * weight).sum() / total
    place = points.expand(len(made), -1, -1)[chosen]
    distribution = (_focal(sides[chosen], place, truth) * weight).sum() / total
    return torch.stack([box, kinds, distribution])


def _objects(targets: Tensor, finest: Tensor, stride: int) -> list[Tensor]:
    """Class and corners in pixels (m, 5) of each picture's objects."""
    count, _, height, width = finest.shape
    size = torch.tensor([width, height] * 2, device=targets.device) * stride
    rows = torch.cat([targets[:, :2], corners(targets[:, 2:]) * size], dim=1)
    return [rows[rows[:, 0] == index, 1:] for index in range(count)]


def _focal(logits: Tensor, points: Tensor, truth: Tensor) -> Tensor:
    """DFL (k,): cross-entropy with the two bins around each side's distance, linear between them, mean of four sides.

    Logits are (k, 4 · bins); points (k, 2) and true corners (k, 4) are in cells.
    """
    away = torch.cat([points - truth[:, :2], truth[:, 2:] - points], dim=1).clamp(0, BINS - 1 - 0.01)
    low = away.long()
    share = low + 1 - away
    bins = logits.view(-1, BINS)
    below, above = (F.cross_entropy(bins, bin_.view(-1), reduction="none").view(away.shape) for bin_ in (low, low + 1))
    return (below * share + above * (1 - share)).mean(dim=1)
