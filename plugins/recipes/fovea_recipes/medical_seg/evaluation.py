"""From frames to tensors, from networks to scores and to graphs: what all recipes of this service share.

Knows arrays of frames; knows nothing about where they come from. A graph is the served map alone, for any batch and any
size that is a multiple of 32; a service fixes height and width of the one that it exports for itself.
"""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fovea_recipes.medical_seg.metrics import curves, dataset_scores
from fovea_recipes.training.recipe import Recipe, predict_in_batches, to_tensor
from services.medical_seg.models.polyp_network import PolypNetwork
from services.medical_seg.preprocess import MEAN, STD
from services.medical_seg.segmenter import TENSOR_NAMES
from shared.export.onnx_export import export_onnx
from shared.export.parity import Parity

Maps = NDArray[np.float32]
Masks = NDArray[np.bool_]


def normalise_frames(images: NDArray[np.uint8]) -> Tensor:
    """Frames (n, h, w, 3) uint8 as network input (n, 3, h, w)."""
    return (to_tensor(images) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def predict_maps(network: nn.Module, images: NDArray[np.uint8], batch: int = 16) -> Maps:
    """Polyp probability (n, h, w) of each pixel: the sigmoid of the served map."""
    if not len(images):
        return np.empty(images.shape[:3], np.float32)
    served = cast("PolypNetwork", network).prediction
    return np.asarray(predict_in_batches(network, images, normalise_frames, batch, served)[:, 0].sigmoid().numpy())


def mean_dice_at_half(maps: Maps, masks: Masks) -> float:
    """Dice at 0.5, averaged over the frames (n, h, w) that have a polyp."""
    found, some = maps >= 0.5, masks.any(axis=(1, 2))
    overlap, total = (found & masks).sum(axis=(1, 2)), found.sum(axis=(1, 2)) + masks.sum(axis=(1, 2))
    return float((2 * overlap / np.maximum(total, 1))[some].mean())


def score_frames(maps: Maps, masks: Masks) -> dict[str, float]:
    """All metrics of probability maps and masks (n, h, w): section 7 of the spec, over frames that have a polyp.

    `empty_with_any_pixel` is the share of polyp-free frames in which at least one pixel reaches 0.5.
    """
    some = masks.any(axis=(1, 2))
    scores = dataset_scores(zip((maps[some] * 255).round().astype(np.uint8), masks[some], strict=True))
    if (~some).any():
        scores["empty_with_any_pixel"] = float((maps[~some] >= 0.5).any(axis=(1, 2)).mean())
    return scores | {"frames": float(len(masks)), "empty_frames": float((~some).sum())}


def score_thresholds(maps: Maps, masks: Masks) -> list[float]:
    """Dice of each frame that has a polyp, averaged over the thresholds: the values behind `mean_dice`."""
    some = masks.any(axis=(1, 2))
    frames = zip((maps[some] * 255).round().astype(np.uint8), masks[some], strict=True)
    return [float(curves(frame, mask).dice.mean()) for frame, mask in frames]


class PolypRecipe(Recipe):
    """Parts shared by all recipes of a `PolypNetwork`: measures of its map, and its graph."""

    def measure_maps(self, network: nn.Module, images: NDArray[np.uint8], masks: Masks) -> dict[str, float]:
        """All metrics of frames (n, h, w, 3) and masks (n, h, w)."""
        maps = predict_maps(network, images)
        return score_frames(maps, masks) | self.average(mean_dice=score_thresholds(maps, masks))

    def export(self, network: nn.Module, path: Path) -> Parity:
        """Export `prediction` (map_2, or the sum of V2's foreground maps), compared with torch at two further sizes.

        Raises:
            Fault: The graph computes something else.
        """
        (given, wanted), draw = TENSOR_NAMES, torch.Generator().manual_seed(0)
        shapes = ((2, 3, 64, 96), (1, 3, 96, 64), (3, 3, 128, 128))
        example, *probes = ({given: torch.randn(shape, generator=draw)} for shape in shapes)
        axes = {given: {0: "n", 2: "h", 3: "w"}, wanted: {0: "n", 2: "h", 3: "w"}}
        call = cast("PolypNetwork", network.eval()).prediction
        return export_onnx(network, path, example, [wanted], call=call, dynamic=axes, probes=probes)
