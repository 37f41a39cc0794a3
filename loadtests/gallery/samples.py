"""Users' input, made from pictures and texts of this repository: a study, a drive, a test collection.

The first steps of the README and the gallery run on these. No patient and no labels of anybody are in them.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageEnhance, ImageOps, TiffImagePlugin
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MultiFrameTrueColorSecondaryCaptureImageStorage, generate_uid

ROOT = Path(__file__).parents[2]
FRAME = ROOT / "services/medical_seg/models/frame.jpg"
DAMAGED, SOUND = ROOT / "services/detection/models/pavement.jpg", Path(__file__).with_name("road.jpg")
"""Real roads of Brazil's DNIT (CC BY 4.0): see NOTICE.md next to each."""

MINI = ROOT / "services/relevance_judge/data/mini"
CODES = {3: 1, 2: 2, 1: 3, 0: 5}
"""Our grades as Cranfield's codes."""

NORTH, EAST = 111_195.0, 71_500.0
"""Metres per degree at 50 degrees north."""


def write_study(folder: Path) -> None:
    """Write a real frame of colonoscopy and its mirror image as a DICOM object of two frames, without a patient."""
    pixels = np.asarray(Image.open(FRAME).convert("RGB"))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MultiFrameTrueColorSecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = generate_uid(), ExplicitVRLittleEndian
    film = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    film.SOPClassUID, film.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    film.StudyInstanceUID, film.SeriesInstanceUID = generate_uid(), generate_uid()
    film.PatientName, film.PatientID, film.PatientBirthDate, film.PatientSex = "Example", "0", "", ""
    film.Modality, film.StudyDate, film.StudyTime = "ES", "20260102", "120000"
    film.AccessionNumber, film.StudyID, film.ReferringPhysicianName = "", "", ""
    film.SeriesNumber, film.InstanceNumber, film.BurnedInAnnotation = 1, 1, "NO"
    film.Rows, film.Columns = pixels.shape[:2]
    film.SamplesPerPixel, film.PhotometricInterpretation, film.PlanarConfiguration = 3, "RGB", 0
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 8, 8, 7, 0
    film.NumberOfFrames, film.PixelData = 2, np.stack([pixels, pixels[:, ::-1]]).tobytes()
    folder.mkdir(parents=True, exist_ok=True)
    film.save_as(folder / "film.dcm", enforce_file_format=True)


def write_drive(folder: Path, photographs: int = 90, *, step_m: float = 15.0, seed: int = 3) -> None:
    """Write a drive with made-up places and times in EXIF, one photograph in three damaged, worse in the middle.

    Two real photographs are repeated, mirrored or not, in other light.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    north = east = heading = 0.0
    for place in range(photographs):
        bend = math.sin(place / photographs * 2 * math.pi)
        heading += 0.07 * bend + rng.normal(0, 0.02)
        north, east = north + step_m * math.sin(heading), east + step_m * math.cos(heading)
        middle = 1 - abs(2 * place / photographs - 1)
        road = Image.open(DAMAGED if rng.random() < 0.1 + 0.5 * middle else SOUND).convert("RGB")
        road = ImageEnhance.Brightness(road).enhance(rng.uniform(0.85, 1.15))
        road = ImageOps.mirror(road) if rng.random() < 0.5 else road
        exif = _write_exif(50 + north / NORTH, 8 + east / EAST, place)
        road.save(folder / f"{place:03d}.jpg", quality=92, exif=exif)


def _write_exif(latitude: float, longitude: float, second: int) -> Image.Exif:
    """Place (degrees, north and east) and time as a camera states them."""
    exif, tags = Image.Exif(), ExifTags.GPS
    gps: dict[int, Any] = exif.get_ifd(ExifTags.IFD.GPSInfo)
    gps[tags.GPSLatitudeRef], gps[tags.GPSLatitude] = "N", _to_sexagesimal(latitude)
    gps[tags.GPSLongitudeRef], gps[tags.GPSLongitude] = "E", _to_sexagesimal(longitude)
    clock = (10.0, float(second // 60), float(second % 60))
    gps[tags.GPSDateStamp], gps[tags.GPSTimeStamp] = "2026:05:04", clock
    return exif


def _to_sexagesimal(degrees: float) -> tuple[TiffImagePlugin.IFDRational, ...]:
    minutes = degrees % 1 * 60
    parts = (int(degrees), int(minutes), minutes % 1 * 60)
    return tuple(TiffImagePlugin.IFDRational(round(part * 100_000), 100_000) for part in parts)


def write_collection(folder: Path) -> None:
    """Write the graded mini-collection in Cranfield's form: `documents`, `topics` and `relevance`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in (MINI / "passages.jsonl").read_text("utf8").splitlines()]
    number = {row["id"]: place for place, row in enumerate(rows, 1)}
    topics = [line.split("\t") for line in (MINI / "topics.tsv").read_text("utf8").splitlines()]
    labels = [line.split() for line in (MINI / "qrels.txt").read_text("utf8").splitlines()]
    (folder / "documents").write_text("".join(f".I {number[row['id']]}\n.W\n{row['text']}\n" for row in rows), "utf8")
    (folder / "topics").write_text("".join(f".I {qid}\n.W\n{text}\n" for qid, text in topics), "utf8")
    lines = (f"{qid} {number[docid]} {CODES[int(grade)]}\n" for qid, _, docid, grade in labels)
    (folder / "relevance").write_text("".join(lines), "utf8")
