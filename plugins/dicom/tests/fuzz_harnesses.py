"""DICOM files as callers send them: read, shown, segmented by a stand-in, and answered with derived objects."""

import asyncio
import warnings
import zipfile
from functools import cache
from typing import Any

import numpy as np
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from fovea.api.mask import Component, SegmentOut
from fovea_dicom.bodies import number_files, parse_related, unpack_zip
from fovea_dicom.schemas import StudyOptions
from fovea_dicom.study import StudySegmenter
from plugins.dicom.tests.test_dicom_study import film, holding, to_file
from shared.registry import CallContext
from shared.vision.decode import decode
from shared.vision.draw import encode
from tests.fuzz.decoders.forms import make_zip
from tests.fuzz.decoders.pictures import BOUNDS
from tests.fuzz.harness import Harness

_SIDE = 8


def _file(syntax: str, *, is_colour: bool = False, **more: Any) -> bytes:
    """A small object; keyword arguments are further attributes."""
    facts = {"PatientName": "A^B", "PatientID": "C", "Modality": "OT", **more}
    if is_colour:
        one = film(*(np.arange(2 * _SIDE * _SIDE * 3) % 251).astype(np.uint8).reshape(2, _SIDE, _SIDE, 3), **facts)
    else:
        grey = (np.arange(_SIDE * _SIDE) * 37 % 4096).astype("<u2").reshape(_SIDE, _SIDE)
        depth = {"SamplesPerPixel": 1, "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11}
        one = film(grey, **{**depth, "PhotometricInterpretation": "MONOCHROME2", **facts})
        del one.PlanarConfiguration
    del one.BurnedInAnnotation
    if syntax == RLELossless:
        one.compress(RLELossless)
    else:
        one.file_meta.TransferSyntaxUID = syntax
    return to_file(one)


@cache
def _seeds() -> tuple[bytes, ...]:
    plain = {"WindowCenter": 2000, "WindowWidth": 1000, "RescaleSlope": "2", "RescaleIntercept": "-3"}
    table = holding(LUTDescriptor=[4, 0, 8], LUTData=b"\0\0\x5a\0\xc8\0\xff\0")
    units = {"PhysicalUnitsXDirection": 3, "PhysicalUnitsYDirection": 3, "PhysicalDeltaX": 0.1, "PhysicalDeltaY": 0.1}
    measures, turn = holding(PixelMeasuresSequence=[holding(PixelSpacing=[0.5, 0.5])]), [1, 0, 0, 0, 1, 0]
    colours = {f"{name}PaletteColorLookupTableDescriptor": [16, 0, 16] for name in ("Red", "Green", "Blue")}
    colours |= {f"{name}PaletteColorLookupTableData": bytes(range(32)) for name in ("Red", "Green", "Blue")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (
            _file(ExplicitVRLittleEndian, **plain, PixelSpacing=[0.5, 0.25], ImageOrientationPatient=turn),
            _file(ImplicitVRLittleEndian, PixelPaddingValue=0, PatientOrientation=["L", "P"]),
            _file(RLELossless, **plain),
            _file(ExplicitVRLittleEndian, VOILUTSequence=[table], PhotometricInterpretation="MONOCHROME1"),
            _file(ExplicitVRLittleEndian, PhotometricInterpretation="PALETTE COLOR", **colours),
            _file(
                ExplicitVRLittleEndian, is_colour=True, SequenceOfUltrasoundRegions=[holding(**units)],
                SharedFunctionalGroupsSequence=[measures],
            ),
        )  # fmt: skip


async def _predict(request: Any) -> Any:
    mask = np.zeros((*decode(request.image, BOUNDS).pixels.shape[:2], 3), np.uint8)
    mask[:2, :2] = 255
    found = Component(box=(0, 0, 2, 2), area=4, centre=(1, 1), probability=0.9)
    facts = {"empty": False, "area": 4, "component_count": 1, "max_probability": 0.9, "mean_probability": 0.9}
    return SegmentOut.model_construct(mask=encode(mask), components=[found], warnings=[], **facts)


def _segment(data: bytes) -> object:
    options = StudyOptions(include=("segmentation", "report", "strip"))
    segmenter = StudySegmenter(_predict, "stand-in", "1", BOUNDS)
    return asyncio.run(segmenter.segment(number_files([data]), options, CallContext())).model_dump_json()


_RELATED = b"multipart/related; boundary=x\n--x\r\ncontent-type: application/dicom\r\n\r\nabc\r\n--x--"
_WORDS = (b"--x\r\n", b"\r\n\r\n", b"--x--", b"boundary=", b"; charset=none", b'"', b";")


def _related(data: bytes) -> object:
    media, _, body = data.partition(b"\n")
    return parse_related(media.decode("latin-1"), body)


HARNESSES: dict[str, Harness] = {
    "related": Harness(_related, (_RELATED,), words=_WORDS),
    "zip": Harness(
        unpack_zip,
        (make_zip(), make_zip(zipfile.ZIP_DEFLATED), make_zip(zipfile.ZIP_BZIP2), make_zip(zipfile.ZIP_LZMA)),
        words=(b"PK\x05\x06", b"PK\x01\x02", b"PK\x03\x04", b"PK\x06\x06", b"\x0e\0", b"\x0c\0", b"\xff\xfe"),
    ),
    "dicom": Harness(_segment, _seeds(), words=(
        b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0", b"\xff\xff\xff\xff", b"SQ\0\0", b"DS", b"IS", b"US\x02\0",
        b"OW", b"\x28\0\x10\0", b"\x28\0\x08\0", b"nan", b"1e999", b"1\\2", b"\0\0", b"YBR_FULL_422", b"-1",
    ))
}  # fmt: skip
