"""Input views of a picture: the whole and its slices, each letterboxed; and the boxes of all views as one list.

Knows arrays and the options of a request; knows no engine and no file.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fovea.api.boxes import DEFAULT_CONFIDENCE, DetectOptions, Letterbox
from fovea.errors import TooLarge
from services.detection.boxes.letterbox import letterbox, unletterbox
from services.detection.boxes.nms import nms
from services.detection.boxes.tiling import Slice, make_slices, merge_slices
from shared.vision.calibration import Platt

NEUTRAL = Platt()
"""Scores are reported as the network gives them."""

MAX_SLICES = 1024
"""Most slices of one picture."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One input of the network, (h, w, 3) uint8 because there may be hundreds, and where it lies in the original."""

    input: np.ndarray
    area: Slice


@dataclass(frozen=True, slots=True, eq=False)
class LetterboxedImage:
    """A picture as views that the network takes.

    Attributes:
        views: The whole picture, then its slices.
        height: Pixels of the original.
        width: Pixels of the original.
        letterbox: How the whole was fitted.
    """

    views: list[View]
    height: int
    width: int
    letterbox: Letterbox


def letterbox_views(
    pixels: np.ndarray, options: DetectOptions, side: int, stride: int, *, square: bool
) -> LetterboxedImage:
    """Fit a picture (h, w, 3), and its slices where `options.tile` asks for them, into inputs of at most `side`.

    Raises TooLarge: there would be more than `MAX_SLICES` slices.
    """
    height, width = pixels.shape[:2]
    parts = make_slices(height, width, options.tile, options.tile_overlap) if options.tile else []
    if len(parts) > MAX_SLICES:
        detail = f"{len(parts)} slices of {options.tile} pixels; {MAX_SLICES} are the most."
        raise TooLarge(detail, hint="Take a larger tile.", field="tile")
    areas = [Slice(0, 0, width, height), *parts]
    fitted = [letterbox(pixels[a.y1 : a.y2, a.x1 : a.x2], side, stride, not square) for a in areas]
    page, ratio, (pad_x, pad_y) = fitted[0]
    how = Letterbox(ratio=ratio, pad=(pad_x, pad_y), width=page.shape[1], height=page.shape[0])
    return LetterboxedImage([View(made, a) for (made, *_), a in zip(fitted, areas, strict=True)], height, width, how)


def collect_boxes(
    picture: LetterboxedImage,
    predictions: Sequence[np.ndarray],
    options: DetectOptions,
    classes: Sequence[int] | None,
    sureness: Platt = NEUTRAL,
) -> np.ndarray:
    """The boxes of a picture, pixels of the original, best first.

    `predictions` are (4 + classes, a) of each of its views; `options` say how much confidence and overlap, and how
    many. Of `classes` only these ids count, None means all; `sureness` leads from the network's scores to the reported
    ones.
    """
    pairs = zip(picture.views, predictions, strict=True)
    found = [_placed(view, _suppress(rows, options, classes, sureness)) for view, rows in pairs]
    if len(found) == 1:
        return found[0]
    sources = np.repeat(np.arange(len(found)) - 1, [len(rows) for rows in found])
    parts = [view.area for view in picture.views[1:]]
    shape = (picture.height, picture.width)
    return merge_slices(
        np.concatenate(found), sources, parts, shape, iou=options.iou, agnostic=options.agnostic,
        most=options.max_detections,
    )  # fmt: skip


def _suppress(
    predictions: np.ndarray, options: DetectOptions, classes: Sequence[int] | None, sureness: Platt
) -> np.ndarray:
    least = DEFAULT_CONFIDENCE if options.confidence is None else options.confidence
    (rows,) = nms(
        predictions[None],
        confidence=least if sureness == NEUTRAL else float(sureness.inverse(least)),
        iou=options.iou,
        max_detections=options.max_detections,
        classes=classes,
        agnostic=options.agnostic,
    )
    if sureness != NEUTRAL:
        rows[:, 4] = sureness(rows[:, 4])
    return np.asarray(rows)


def _placed(view: View, rows: np.ndarray) -> np.ndarray:
    """Rows (m, 6) of a view's input as rows in the original; what shrank to nothing at its edge is left out."""
    a = view.area
    back = unletterbox(rows.astype(np.float64), view.input.shape[:2], (a.y2 - a.y1, a.x2 - a.x1))
    back[:, :4] += (a.x1, a.y1, a.x1, a.y1)
    return back[(back[:, 2] > back[:, 0]) & (back[:, 3] > back[:, 1])]
