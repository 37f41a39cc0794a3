"""Films of tests, written by OpenCV."""

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
