"""Films of tests, written by OpenCV."""

import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

CODECS = {".mp4": "mp4v", ".webm": "VP80", ".mkv": "VP90"}


def write_film(file: Path, frames: Sequence[np.ndarray], rate: float = 10) -> bytes:
    """Write frames (H, W, BGR) into a film, `rate` a second, in the form that the file's ending names; its bytes."""
    height, width = frames[0].shape[:2]
    out = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*CODECS[file.suffix]), rate, (width, height))
    for frame in frames:
        out.write(frame)
    out.release()
    return file.read_bytes()


def slow_down(film: bytes, frames: int) -> bytes:
    """An MP4 of a constant rate, slowed down to a fifth from a frame on, as telephones do in the dark."""
    made = bytearray(film)
    place = made.index(b"stts") - 4
    size, _, _, _, count, ticks = struct.unpack(">I4sIIII", made[place : place + 24])
    made[made.index(b"edts") : made.index(b"edts") + 4] = b"free"  # what it says of the length is no longer right
    made[place : place + size] = struct.pack(">I4s6I", 32, b"stts", 0, 2, frames, ticks, count - frames, 5 * ticks)
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        at = made.index(box) - 4
        made[at : at + 4] = struct.pack(">I", struct.unpack(">I", made[at : at + 4])[0] + 32 - size)
    return bytes(made)
