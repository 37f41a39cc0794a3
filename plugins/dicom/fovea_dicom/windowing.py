"""Grey values of a frame → what a viewer shows: modality rescaling, then a window (DICOM PS3.3 C.11.1 and C.11.2)."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut

from fovea.errors import InvalidOption
from fovea_dicom.geometry import find_functional_item

Floats = NDArray[np.float64]
Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]


@dataclass(frozen=True)
class GreyWindow:
    """Values around `center`, `width` wide, are spread over black to white."""

    center: float
    width: float
    function: Function = "LINEAR"

    def apply(self, values: Floats) -> Floats:
        """Shades 0…1 of values."""
        if self.function == "SIGMOID":
            return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - self.center) / self.width, -80, 80))))
        if self.function == "LINEAR_EXACT":
            return np.asarray(np.clip((values - self.center) / self.width + 0.5, 0, 1))
        if self.width <= 1:  # a threshold, as the standard defines it
            return np.asarray((values > self.center - 0.5).astype(float))
        return np.asarray(np.clip((values - (self.center - 0.5)) / (self.width - 1) + 0.5, 0, 1))


def parse_window(text: str | None) -> GreyWindow | None:
    """A window from `center,width`; InvalidOption if it is not two numbers, or the width is not positive."""
    if not text:
        return None
    try:
        center, width = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidOption(f"The window {text[:40]!r} is not `center,width`.", field="window") from error
    if not (np.isfinite(center) and np.isfinite(width) and width > 0):
        raise InvalidOption("A window has finite numbers and a width above 0.", field="window")
    return GreyWindow(center, width)


def to_grey(raw: NDArray[Any], dataset: Dataset, index: int, window: GreyWindow | None) -> NDArray[np.uint8]:
    """Shades (h, w) uint8 of one frame's stored values: MONOCHROME1 is inverted, and padding is black."""
    values, padding = _rescale(raw, dataset, index), _padding_mask(raw, dataset)
    used = window or find_window(dataset, index)
    if used is None and (tables := dataset.get("VOILUTSequence")):
        shades = _apply_table(values, tables[0], "<>"[dataset.original_encoding[1] is False])
    elif used is None:
        shades = _stretch(values, values[~padding])
    else:
        shades = used.apply(values)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        shades = 1 - shades
    return np.asarray(np.rint(np.where(padding, 0, shades) * 255), np.uint8)


def find_window(dataset: Dataset, index: int) -> GreyWindow | None:
    """The first window of a frame, from its functional groups or the object itself; None where it has none."""
    item = find_functional_item(dataset, "FrameVOILUTSequence", index) or dataset
    center, width = (_first_number(item.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if center is None or width is None or width <= 0:
        return None
    functions: dict[str, Function] = {"SIGMOID": "SIGMOID", "LINEAR_EXACT": "LINEAR_EXACT"}
    return GreyWindow(center, width, functions.get(str(item.get("VOILUTFunction")).upper(), "LINEAR"))


def _rescale(raw: NDArray[Any], dataset: Dataset, index: int) -> Floats:
    item = find_functional_item(dataset, "PixelValueTransformationSequence", index) or dataset
    if item.get("ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(raw, dataset), np.float64)
    slope, intercept = (_first_number(item.get(name)) for name in ("RescaleSlope", "RescaleIntercept"))
    return raw.astype(np.float64) * (1.0 if slope is None else slope) + (intercept or 0.0)


def _apply_table(values: Floats, item: Dataset, order: str) -> Floats:
    """A look-up table's shades 0…1; entries of 8 bits may lie two in a word, others have the bytes' `order`."""
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    data, entries = item.LUTData, entries or 2**16
    kind = np.uint8 if len(data) < 2 * entries else np.dtype(f"{order}u2")
    table = np.frombuffer(data, kind) if isinstance(data, bytes) else np.asarray(data)
    if first >= 2**15 and values.min() < 0:
        first -= 2**16  # a signed first value that was stored unsigned
    places = np.clip(values.astype(np.int64) - first, 0, entries - 1)
    return np.asarray(table[np.minimum(places, len(table) - 1)] / (2**bits - 1)).clip(0, 1)


def _stretch(values: Floats, known: Floats) -> Floats:
    """The least to the greatest of the known values over black to white."""
    if not known.size or known.max() <= known.min():
        return np.zeros(values.shape)
    return np.asarray(((values - known.min()) / (known.max() - known.min())).clip(0, 1))


def _padding_mask(raw: NDArray[Any], dataset: Dataset) -> NDArray[np.bool_]:
    low = _first_number(dataset.get("PixelPaddingValue"))
    if low is None:
        return np.zeros(raw.shape, bool)
    high = _first_number(dataset.get("PixelPaddingRangeLimit"))
    ends = np.asarray((low, low if high is None else high))
    if raw.itemsize == 2:  # devices state it unsigned where their pixels are signed, and the other way round
        ends = ends.astype(np.int64).astype(raw.dtype)
    return np.asarray((raw >= ends.min()) & (raw <= ends.max()))


def _first_number(value: Any) -> float | None:
    """The first of one or several numbers, None where there is none or it is not finite."""
    try:
        first = value[0] if not isinstance(value, str | bytes) and hasattr(value, "__len__") else value
        return float(first) if np.isfinite(float(first)) else None
    except (TypeError, ValueError, IndexError):
        return None
