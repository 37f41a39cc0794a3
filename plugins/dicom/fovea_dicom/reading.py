"""DICOM objects → frames as RGB pictures: all transfer syntaxes that pydicom's plugins decode, one frame at a time.

A dataset's facts about a patient are neither logged nor put into an error: pydicom's own messages quote values, so they
are silenced for the whole process.
"""

import io
import logging
import warnings
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import config, dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.filereader import read_dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    MPEGTransferSyntaxes,
)

from fovea.errors import Malformed, TooLarge, UnsupportedMedia
from fovea_dicom.bodies import is_dicom
from fovea_dicom.decoder_child import DECODER_CHILD, remove_unsafe_decoders
from fovea_dicom.geometry import count_frames
from fovea_dicom.sources import copy_object
from fovea_dicom.windowing import GreyWindow, to_grey
from shared.vision.limits import DEFAULT_BOUNDS, DecodeBounds

MAX_FRAMES = 2000
PIECE = 2**16
"""Bytes of a deflated file that are inflated at once, into at most 256 times as many."""
DESCRIPTIONS = ("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "PixelRepresentation")
"""Attributes without which no pixels are decoded."""
FILM_HINT = "Films in MPEG are not read. Export their frames, or the film as JPEG."
GPL_HINT = "The plugin pylibjpeg-libjpeg reads 12 bits; its licence is GPL-3.0, so install it yourself."

Picture = NDArray[np.uint8]

config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
logging.getLogger("highdicom").setLevel(logging.CRITICAL)
CHILD_SYNTAXES = remove_unsafe_decoders()


def read_object(data: bytes) -> FileDataset:
    """Read a DICOM file, without decoding its pixels; elements that can't be read count as missing.

    Raises Malformed: it is not a DICOM file, or ends early.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = dcmread(io.BytesIO(data), force=is_dicom(data, bare=True))
            _drop_unreadable(found)
    except Exception as error:  # pydicom raises whatever a damaged file trips over
        hint = "A DICOM file has the letters DICM behind its first 128 bytes."
        raise Malformed("The file can't be read as DICOM.", hint=hint, field="files") from error
    if not found:  # of a file that ends within its pixels pydicom drops everything
        raise Malformed("The file ends early, or is empty.", hint="Copy or export it again.", field="files")
    if "TransferSyntaxUID" not in found.file_meta:
        is_implicit, is_little = found.original_encoding
        explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
        found.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit
    if "BitsAllocated" in found and not found.get("BitsStored"):
        found.BitsStored = found.BitsAllocated
    return found


def count_inflated(data: bytes, most: int) -> int:
    """Bytes that a deflated file inflates to; 0 of any other. Raises TooLarge: they are more than `most`."""
    file, count = io.BytesIO(data), 0
    file.seek(132 if is_dicom(data) else 0)
    try:
        meta = read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: tag >> 16 != 2)
        is_deflated = meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        while is_deflated and count <= most and (piece := stream.unconsumed_tail or file.read(PIECE)):
            count += len(stream.decompress(piece, 256 * PIECE))
    except Exception:  # noqa: BLE001  # see read_object, which says what is wrong
        return 0
    if count > most:
        raise TooLarge(f"It inflates to more than the {most // 2**20} MB that are left.", field="files")
    return count


def _drop_unreadable(dataset: Dataset) -> None:
    """Read every element, which pydicom does when it is asked for, and leave out those whose value is nonsense."""
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
        except Exception:  # noqa: BLE001  # see read_object
            del dataset[tag]
            continue
        for item in element.value or () if element.VR == "SQ" else ():
            _drop_unreadable(item)


def has_pixels(dataset: FileDataset) -> bool:
    """Whether an object is a picture: reports, plans and waveforms have none, and dose grids are no pictures."""
    return "PixelData" in dataset and "Rows" in dataset and str(dataset.get("Modality")) not in {"SEG", "RTDOSE"}


def read_frame(
    dataset: FileDataset, index: int = 0, window: GreyWindow | None = None, bounds: DecodeBounds = DEFAULT_BOUNDS
) -> Picture:
    """One frame as RGB (h, w, 3) uint8, as a viewer shows it.

    Grey frames go through the modality's rescaling and a window: the one given, the object's own, or from the least to
    the greatest value. MONOCHROME1 is inverted, palettes and YBR become RGB, 16-bit colour keeps its high byte. Raises
    TooLarge: the header says more pixels or frames than `bounds` and `MAX_FRAMES` allow; UnsupportedMedia: there are no
    pixels, or no plugin decodes them.
    """
    rows, columns = _check(dataset, bounds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = _decode(dataset, index)
            photometric = str(dataset.PhotometricInterpretation)
            if photometric == "PALETTE COLOR":
                raw = np.asarray(apply_color_lut(raw, _with_little_endian_palette(dataset)))
            grey = None if raw.ndim == 3 else to_grey(raw, dataset, index, window)
    except Exception as error:  # pydicom raises whatever a damaged file trips over
        syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
        name = getattr(syntax, "name", "an unnamed transfer syntax")
        hints = {str(JPEGExtended12Bit): GPL_HINT} | {str(one): FILM_HINT for one in MPEGTransferSyntaxes}
        missing = [one for one in DESCRIPTIONS if dataset.get(one) is None]
        reason = f"Its header lacks {', '.join(missing)}." if missing else "The file may be damaged."
        detail = f"Frame {index + 1} can't be decoded ({name}). {hints.get(str(syntax), reason)}"
        raise UnsupportedMedia(detail, field="files") from error
    if grey is None:
        return _eight_bits(raw[..., :3], dataset, is_palette=photometric == "PALETTE COLOR")
    if raw.shape != (rows, columns):
        raise UnsupportedMedia(f"Frame {index + 1} is not {columns} × {rows} as its header says.")
    return np.ascontiguousarray(np.broadcast_to(grey[..., None], (*grey.shape, 3)))


def _decode(dataset: FileDataset, index: int) -> NDArray[Any]:
    """Pixels of a frame as they are stored."""
    stored, high, allocated = (int(dataset.get(name) or 0) for name in ("BitsStored", "HighBit", "BitsAllocated"))
    shift = 0 if dataset.file_meta.TransferSyntaxUID.is_encapsulated else high + 1 - stored
    if not 0 < shift <= allocated - stored:
        return decode_stored(dataset, index)
    dataset = copy_object(dataset)  # pydicom takes the lowest bits of each word
    dataset.BitsStored = high + 1
    return decode_stored(dataset, index) >> shift


def decode_stored(dataset: FileDataset, index: int) -> NDArray[Any]:
    """A frame as pydicom's `pixel_array` returns it; the child process decodes what this one can't.

    A panic of the plug-in for run lengths, in Rust, becomes a ValueError.
    """
    try:
        return np.asarray(pixel_array(dataset, index=index))
    except BaseException as error:
        # A panic is not an Exception, so it would bypass the error handlers, and its class can't be imported.
        if type(error).__name__ == "PanicException":
            raise ValueError("The decoder broke off.") from None
        if not isinstance(error, Exception) or str(dataset.file_meta.TransferSyntaxUID) not in CHILD_SYNTAXES:
            raise
    return DECODER_CHILD.decode(dataset, index)


def _with_little_endian_palette(dataset: FileDataset) -> Dataset:
    """The dataset, with palettes in the byte order in which pydicom reads them."""
    if dataset.original_encoding[1] is not False:
        return dataset
    turned = copy_object(dataset)
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTableData"
        if name in dataset:
            setattr(turned, name, np.frombuffer(dataset[name].value, ">u2").astype("<u2").tobytes())
    return turned


def _check(dataset: FileDataset, bounds: DecodeBounds) -> tuple[int, int]:
    """Rows and columns that the header says, within bounds."""
    if not has_pixels(dataset):
        raise UnsupportedMedia("The object holds no picture.", field="files")
    try:
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        int(dataset.get("SamplesPerPixel", 1))  # the decoder multiplies by it
    except (AttributeError, TypeError, ValueError) as error:
        raise Malformed("The object does not say how large its picture is.", field="files") from error
    if (frames := count_frames(dataset)) > MAX_FRAMES:
        raise TooLarge(f"The object has {frames} frames; at most {MAX_FRAMES} are read.", field="files")
    if rows * columns > bounds.pixels:
        raise TooLarge(f"A frame has {columns} × {rows} pixels; at most {bounds.pixels} are read.", field="files")
    return rows, columns


def _eight_bits(raw: NDArray[np.generic], dataset: FileDataset, *, is_palette: bool) -> Picture:
    if raw.dtype == np.uint8:
        return np.ascontiguousarray(raw)
    bits = 16 if is_palette else int(dataset.get("BitsStored", 8 * raw.dtype.itemsize))
    return np.ascontiguousarray((raw.astype(np.uint64) >> max(bits - 8, 0)).clip(0, 255).astype(np.uint8))
