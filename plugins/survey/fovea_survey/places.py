"""Where and when a photograph was taken, from its EXIF; HEIC as PNG."""

import contextlib
import datetime as dt
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from fovea.errors import TooLarge, UnsupportedMedia
from shared.vision.draw import encode
from shared.vision.format_detection import detect_format
from shared.vision.limits import DecodeBounds


@dataclass(frozen=True)
class Place:
    """A point on the earth, WGS 84, degrees and metres; `time` is UTC where the file states its offset or GPS time."""

    latitude: float
    longitude: float
    altitude: float | None = None
    heading: float | None = None
    time: dt.datetime | None = None


def find_place(data: bytes) -> Place | str:
    """Return the place of a photograph (JPEG, PNG, TIFF, WebP or HEIC), or why it has none.

    Nothing is guessed: both hemispheres must be stated.
    """
    exif = _read_exif(data)
    gps = exif.get_ifd(ExifTags.IFD.GPSInfo) if exif is not None else {}
    tags = ExifTags.GPS
    if exif is None or tags.GPSLatitude not in gps or tags.GPSLongitude not in gps:
        return "The file states no GPS position."
    latitude = _read_angle("latitude", gps[tags.GPSLatitude], gps.get(tags.GPSLatitudeRef), "NS", 90)
    if isinstance(latitude, str):
        return latitude
    longitude = _read_angle("longitude", gps[tags.GPSLongitude], gps.get(tags.GPSLongitudeRef), "EW", 180)
    if isinstance(longitude, str):
        return longitude
    if latitude == longitude == 0:
        return "The position is 0, 0, which cameras write before they know their place."
    altitude, below = _number(gps.get(tags.GPSAltitude)), gps.get(tags.GPSAltitudeRef) in {1, b"\x01"}
    return Place(
        latitude,
        longitude,
        -altitude if altitude is not None and below else altitude,
        _number(gps.get(tags.GPSImgDirection)),
        _read_time(gps, exif),
    )


def read_time(data: bytes) -> dt.datetime | None:
    """When a photograph was taken, without a zone where it states none; None where it does not say."""
    exif = _read_exif(data)
    return None if exif is None else _read_time(exif.get_ifd(ExifTags.IFD.GPSInfo), exif)


def heic_to_png(data: bytes, bounds: DecodeBounds) -> bytes:
    """A HEIC photograph as PNG, upright; any other file as it is.

    Raises UnsupportedMedia: it can't be decoded, or the decoder is not installed; TooLarge: its header says more pixels
    than `bounds` allow.
    """
    if detect_format(data) != "HEIC":
        return data
    try:
        import pillow_heif  # noqa: PLC0415  # only photographs of some telephones need it
    except ModuleNotFoundError as error:
        hint = "Install the package pillow-heif, or export JPEG."
        raise UnsupportedMedia("HEIC can't be read here.", hint=hint, field="images") from error
    try:
        file = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=True)
        width, height = file.size
        if width * height > bounds.pixels:
            raise TooLarge(f"The picture has {width} × {height} pixels; at most {bounds.pixels} are read.")
        return encode(np.ascontiguousarray(np.asarray(file.to_pillow().convert("RGB"))))
    except (ValueError, OSError, RuntimeError, EOFError) as error:
        raise UnsupportedMedia("The HEIC file can't be decoded.", field="images") from error


def _read_exif(data: bytes) -> Image.Exif | None:
    try:
        if detect_format(data) == "HEIC":
            import pillow_heif  # noqa: PLC0415  # see heic_to_png

            raw = pillow_heif.open_heif(io.BytesIO(data)).info.get("exif")
            found = Image.Exif()
            if raw:
                found.load(raw)
            return found if raw else None
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "TIFF", "WEBP")) as image:
            exif = image.getexif()
            for name in (ExifTags.IFD.GPSInfo, ExifTags.IFD.Exif):
                exif.get_ifd(name)  # read while the file is open, and kept
            return exif
    except (OSError, ValueError, SyntaxError, ModuleNotFoundError, Image.DecompressionBombError):
        return None


def _read_angle(name: str, value: Any, side: Any, letters: str, most: int) -> float | str:
    """Degrees of degrees, minutes and seconds, or what is wrong; `letters` are the positive and the negative side."""
    try:
        parts = [float(part) for part in (value if isinstance(value, tuple) else (value,))]
    except (TypeError, ValueError, ZeroDivisionError):
        parts = []
    if not 1 <= len(parts) <= 3 or not all(math.isfinite(part) for part in parts):
        return f"The {name} can't be read."
    found = math.fsum(part / 60**place for place, part in enumerate(parts))
    letter = (side.decode("latin-1") if isinstance(side, bytes) else str(side or "")).strip("\0 ").upper()
    if letter not in tuple(letters):
        return f"The {name} is stated without {letters[0]} or {letters[1]}, so it could be on either side."
    if not 0 <= found <= most:
        return f"The {name} {found:g} is impossible; the largest is {most}."
    if not all(0 <= part <= 60 for part in parts[1:]):
        return f"The {name} states minutes or seconds that are impossible."
    return -found if letter == letters[1] else found


def _number(value: Any) -> float | None:
    try:
        found = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return found if math.isfinite(found) else None


def _read_time(gps: Mapping[int, Any], exif: Image.Exif) -> dt.datetime | None:
    """The satellites' time, or the camera's, as UTC where its offset is known and else without a zone."""
    try:
        clock = [float(part) for part in gps[ExifTags.GPS.GPSTimeStamp]]
        day = dt.datetime.strptime(str(gps[ExifTags.GPS.GPSDateStamp]).strip("\0 "), "%Y:%m:%d").replace(tzinfo=dt.UTC)
        return day + dt.timedelta(hours=clock[0], minutes=clock[1], seconds=clock[2])
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError):
        pass
    own, tags = exif.get_ifd(ExifTags.IFD.Exif), ExifTags.Base
    zone = str(own.get(tags.OffsetTimeOriginal) or own.get(tags.OffsetTime) or "").strip("\0 ")
    taken = own.get(tags.DateTimeOriginal), own.get(tags.SubsecTimeOriginal)
    for text, digits in (taken, (exif.get(tags.DateTime), own.get(tags.SubsecTime))):
        with contextlib.suppress(ValueError):
            found = dt.datetime.strptime(str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S")  # noqa: DTZ007  # see in_zone
            part = re.match("[0-9]{1,6}", str(digits))  # of a second, in which a car drives 20 m
            return in_zone(found.replace(microsecond=int(part[0].ljust(6, "0"))) if part else found, zone)
    return None


def in_zone(time: dt.datetime, zone: str) -> dt.datetime | None:
    """A clock's time as UTC, where `zone` is its offset, such as +02:00, and as it stands where it is none.

    None where it leaves the years that there are.
    """
    try:
        return time.replace(tzinfo=dt.datetime.strptime(zone, "%z").tzinfo).astimezone(dt.UTC)
    except ValueError:
        return time
    except OverflowError:
        return None
