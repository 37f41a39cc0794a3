"""From pictures and networks to scores of boxes: what the recipes of all box detectors share.

Knows arrays of pictures of one size; knows nothing about where they come from.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fovea_recipes.detection.metrics.boxes import box_average_precision
from fovea_recipes.training.recipe import predict_in_batches, to_tensor
from services.detection.boxes import nms

Rows = NDArray[np.float32]


def to_centres(rows: Rows, side: int) -> Rows:
    """Rows that end in x1, y1, x2, y2 in pixels, with centre and size in 0..1 instead."""
    low, high = rows[:, -4:-2] / side, rows[:, -2:] / side
    return np.concatenate((rows[:, :-4], (low + high) / 2, high - low), axis=1)


def predict_boxes(network: nn.Module, images: NDArray[np.uint8], batch: int = 16) -> list[Rows]:
    """Rows (m, 6) of every picture as average precision wants them: 0.001, 0.7, several classes a cell, 300 at most."""
    made = predict_in_batches(network, images, to_tensor, batch, cast("Any", network).predictions)
    return nms(made.numpy(), confidence=0.001, iou=0.7, multi_label=True, max_detections=300)


def map50(truth: Sequence[Rows], found: Sequence[Rows]) -> float:
    """The mean over classes of the average precision at an IoU of one half."""
    return float(box_average_precision(truth, found, (0.5,)).mean())
