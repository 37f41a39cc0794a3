"""From rows of boxes to the fields of an answer: detections with names and sizes, counts, a summary, columns.

Knows rows and the wire types; knows no picture and no network.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fovea.api.boxes import Box, BoxColumns, Detection, Micrometres, Tally
from fovea.errors import InvalidOption

Names = Sequence[str]


def resolve_classes(classes: Sequence[str], names: Names) -> list[int] | None:
    """Ids of the classes that were asked for, by name or id; None for all.

    Raises InvalidOption: there is no such class.
    """
    if not classes:
        return None
    known = {name.lower(): index for index, name in enumerate(names)}
    known |= {str(index): index for index in range(len(names)) if str(index) not in known}
    if unknown := [word for word in classes if word.lower() not in known]:
        listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        raise InvalidOption(f"There is no class {unknown[0]!r}.", hint=f"Classes are {listed}.", field="classes")
    return sorted({known[word.lower()] for word in classes})


def build_detections(rows: np.ndarray, names: Names, microns_per_pixel: float | None = None) -> list[Detection]:
    """Rows (m, 6) as detections, in their order."""
    return [_detection(row, names, microns_per_pixel) for row in rows.tolist()]


def _detection(row: list[float], names: Names, scale: float | None) -> Detection:
    x1, y1, x2, y2, score, kind = row
    box: Box = (round(x1, 2), round(y1, 2), round(x2, 2), round(y2, 2))
    width, height = x2 - x1, y2 - y1
    return Detection(
        box=box,
        score=round(score, 5),
        label=names[int(kind)],
        class_id=int(kind),
        area=round(width * height, 2),
        radius=round((width + height) / 4, 3),
        microns=_microns(width, height, scale) if scale else None,
    )


def _microns(width: float, height: float, scale: float) -> Micrometres:
    across, down = width * scale, height * scale
    return Micrometres(
        width=round(across, 4),
        height=round(down, 4),
        radius=round((across + down) / 4, 4),
        area=round(across * down, 4),
    )


def count_by_class(found: Sequence[Detection]) -> dict[str, int]:
    """Detections by class, most first."""
    names, numbers = np.unique([each.label for each in found], return_counts=True)
    pairs = sorted(zip(names.tolist(), numbers.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))
    return dict(pairs)


def summarise(found: Sequence[Detection]) -> dict[str, Tally]:
    """Count, share, mean score and mean radius by class, most first."""
    return {
        label: _tally([each for each in found if each.label == label], len(found)) for label in count_by_class(found)
    }


def _tally(found: Sequence[Detection], total: int) -> Tally:
    microns = [each.microns.radius for each in found if each.microns is not None]
    return Tally(
        count=len(found),
        percent=round(100 * len(found) / total, 2),
        mean_score=round(float(np.mean([each.score for each in found])), 5),
        mean_radius=round(float(np.mean([each.radius for each in found])), 3),
        mean_radius_um=round(float(np.mean(microns)), 4) if microns else None,
    )


def to_columns(found: Sequence[Detection]) -> BoxColumns:
    """The detections, column by column."""
    names: Mapping[int, str] = {each.class_id: each.label for each in found}
    return BoxColumns(
        xyxy=[each.box for each in found],
        confidence=[each.score for each in found],
        class_id=[each.class_id for each in found],
        class_names=dict(sorted(names.items())),
    )
