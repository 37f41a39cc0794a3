"""From pictures and networks to scores of boxes: what the recipes of all box detectors share.

Knows arrays of pictures of one size; knows nothing about where they come from.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fovea_recipes.detection.metrics.boxes import box_average_precision
from services.detection.boxes import nms

Rows = NDArray[np.float32]


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Pictures (n, h, w, 3) uint8 as network input (n, 3, h, w) in 0..1."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div(255)


def to_centres(rows: Rows, side: int) -> Rows:
    """Rows that end in x1, y1, x2, y2 in pixels, with centre and size in 0..1 instead."""
    low, high = rows[:, -4:-2] / side, rows[:, -2:] / side
    return np.concatenate((rows[:, :-4], (low + high) / 2, high - low), axis=1)


@torch.no_grad()
def predict_boxes(
    network: nn.Module, images: NDArray[np.uint8], predict: Callable[[Tensor], Tensor], batch: int = 16
) -> list[Rows]:
    """Rows (m, 6) of every picture, as average precision wants them: 0.001, 0.7, several classes a cell, 300 at most.

    `predict` takes pictures as tensors to predictions (n, 4 + classes, a).
    """
    device, found = next(network.eval().parameters()).device, []
    for at in range(0, len(images), batch):
        rows = predict(to_tensor(images[at : at + batch]).to(device)).cpu().numpy()
        found += nms(rows, confidence=0.001, iou=0.7, multi_label=True, max_detections=300)
    return found


def map50(truth: Sequence[Rows], found: Sequence[Rows]) -> float:
    """The mean over classes of the average precision at an IoU of one half."""
    return float(box_average_precision(truth, found, (0.5,)).mean())
