"""From a picture to a classifier's input and from its logits to an answer: patches, probabilities, tints, rows.

Knows arrays and the wire type; knows no network and no engine.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

from fovea.api.classes import Candidate, Classified, ClassifyOut
from fovea.api.csv_form import format_csv
from fovea.errors import InvalidOption
from services.detection.boxes.drawing import class_colour
from shared.vision.draw import draw_label

MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)
"""Of ImageNet, by RGB channel, as a share of 255."""

MAX_PATCHES = 1024
"""Patches of one picture."""

MIN_LABEL_WIDTH = 72
"""Pixels that a patch must be wide for its label to be written on it."""


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """How a picture is divided: `rows` times `columns` patches; boxes are x1, y1, x2, y2, row by row."""

    rows: int
    columns: int
    boxes: list[tuple[int, int, int, int]]


def divide(height: int, width: int, tile: int | None) -> PatchGrid:
    """Divide a picture evenly into patches of about `tile` pixels; None leaves it whole.

    Raises InvalidOption: there would be more patches than `MAX_PATCHES`.
    """
    rows, columns = (max(1, round(length / tile)) if tile else 1 for length in (height, width))
    if rows * columns > MAX_PATCHES:
        found = f"tile={tile} divides {width}×{height} pixels into {rows * columns:,} patches"
        raise InvalidOption(f"{found}; the limit is {MAX_PATCHES:,}.", hint="Choose larger patches.", field="tile")
    ys, xs = ([round(length * i / n) for i in range(n + 1)] for length, n in ((height, rows), (width, columns)))
    boxes = [(left, top, right, bottom) for top, bottom in pairwise(ys) for left, right in pairwise(xs)]
    return PatchGrid(rows, columns, boxes)


def resize_patch(pixels: np.ndarray, box: tuple[int, int, int, int], side: int, crop: float) -> np.ndarray:
    """A patch of a picture (h, w, 3) uint8 at the network's size, still uint8 (side, side, 3), bicubic with antialias.

    `crop` is the share of the shorter side that is kept, in the middle, as published evaluations do; 1 squashes the
    whole patch into the square instead.
    """
    patch = Image.fromarray(pixels[box[1] : box[3], box[0] : box[2]])
    if crop < 1:
        short, (wide, high) = min(patch.size) * crop, patch.size
        left, top = (wide - short) / 2, (high - short) / 2
        small = patch.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + short, top + short))
    else:
        small = patch.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(small)


def normalise(patches: np.ndarray) -> np.ndarray:
    """Patches (n, s, s, 3) uint8 as network input (n, 3, s, s) float32."""
    scaled = (patches.astype(np.float32) / 255 - MEAN) / STD
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def pool_stages(stages: Sequence[np.ndarray]) -> np.ndarray:
    """Features (patches, c) to tell kinds of pictures apart by, from the maps of four stages (patches, c, h, w).

    The mean of each channel, and but for the last stage its spread: early stages see colours and textures, by which
    pictures of other kinds differ; the last one sees what the network tells apart, and is alike for all of them.
    """
    means, spreads = ([getattr(stage, how)(axis=(2, 3)) for stage in stages] for how in ("mean", "std"))
    return np.concatenate([*means, *spreads[:-1]], axis=1)


def classify(logits: np.ndarray, boxes: PatchGrid, names: Sequence[str], top_k: int) -> list[Classified]:
    """The classes of patches from their logits (patches, classes)."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probability = shifted / shifted.sum(axis=1, keepdims=True)
    order = np.argsort(-probability, axis=1, kind="stable")[:, :top_k]
    found = []
    for box, row, best in zip(boxes.boxes, probability, order, strict=True):
        top = [Candidate(label=names[i], class_id=int(i), probability=round(float(row[i]), 6)) for i in best]
        found.append(Classified(**top[0].model_dump(), box=box, top=top))
    return found


def count_by_class(results: Sequence[Classified]) -> dict[str, int]:
    """Patches by class, most frequent first."""
    return dict(Counter(result.label for result in results).most_common())


def tint_patches(pixels: np.ndarray, answer: ClassifyOut) -> np.ndarray:
    """The picture with each patch drawn towards the colour of its class, the more the surer it is, and a legend."""
    picture = pixels.copy()
    for result in answer.results:
        left, top, right, bottom = result.box
        patch, strength = picture[top:bottom, left:right], 0.4 * result.probability
        patch[...] = np.rint(patch * (1 - strength) + np.multiply(class_colour(result.class_id), strength))
    return _written(picture, answer)


def _written(picture: np.ndarray, answer: ClassifyOut) -> np.ndarray:
    """Labels on the patches where they fit, otherwise a legend with the share of each class."""
    size = max(11, round(max(picture.shape) / 60))
    fits = min(result.box[2] - result.box[0] for result in answer.results) >= MIN_LABEL_WIDTH
    by_label = {result.label: result.class_id for result in answer.results}
    for line, (label, count) in enumerate(answer.counts.items()):
        if fits:
            texts = [
                (float(r.box[0]), float(r.box[1] + size + 6), f"{label} {r.probability:.0%}")
                for r in answer.results
                if r.label == label
            ]
        else:
            texts = [(0.0, (line + 1) * (size + 6.0), f"{label} {count / len(answer.results):.0%}")]
        picture = draw_label(picture, texts, class_colour(by_label[label]), size)
    return picture


def to_csv(answer: ClassifyOut) -> bytes:
    """One row a patch."""
    head = ("row", "column", "x1", "y1", "x2", "y2", "label", "class_id", "probability")
    rows = [
        (*divmod(index, answer.columns), *result.box, result.label, result.class_id, result.probability)
        for index, result in enumerate(answer.results)
    ]
    return format_csv([head, *rows]).encode()
