"""Video files (MP4, WebM) → encoded frames, decoded one by one in a process of their own.

Decoders of video are large, written in C and fed by strangers: the child has a limit on its memory, sees one file and
nothing else, and takes at most itself down. It waits while nobody takes its frames, so memory is the file, one frame
here and the decoder's few there, however long the film is. Needs OpenCV; the adr on video says why that one.
"""

import io
import math
import resource
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from typing import IO

from PIL import Image

from fovea.errors import Malformed, TooLarge
from shared.settings import environment
from shared.vision.limits import DecodeBounds

CHILD_MEMORY_BYTES = 2 * 2**30
"""Address space of the child."""

MAX_SIDE = 65_535
MAX_FPS = 1000.0

BREAK_OFF = b"broken frame"
"""The last frame of a film that breaks off; every reader shows it, also one that skips frames."""

_HEAD = struct.Struct("<IIId")
"""Before the frames: width, height, how many there should be, frames per second. Before each `_MARK`."""

_MARK = struct.Struct("<Bd")
"""1 before a frame, 0 at the end, 2 where the film breaks off; and the frame's seconds, not a number where unknown."""
_FRAME, _END, _BROKEN = 1, 0, 2


def can_decode() -> bool:
    """Whether OpenCV is installed."""
    return find_spec("cv2") is not None


class VideoFile:
    """The frames of a video file, upright, each as a BMP; one that breaks off ends with a frame that nobody can decode.

    Attributes:
        count: How many frames the file says it has; 0 where it does not say.
        fps: Frames per second, as the file says; 0 where it does not, or where it says what can't be.
        seconds: From the start to the frame that was taken last; None where the file does not say. Telephones' films
            have no constant rate, so that the number of a frame tells no time.

    Raises:
        Malformed: It can't be opened: broken, cut off, or of a codec that is not read.
        TooLarge: A frame has more pixels than allowed; none was decoded.
    """

    def __init__(self, data: bytes, bounds: DecodeBounds) -> None:
        """Open the file; the child lives until the frames have been taken or let go."""
        self.seconds: float | None = None
        self._file = tempfile.NamedTemporaryFile(prefix="fovea-film-")  # noqa: SIM115  # it lives as long as we do
        self._file.write(data)
        self._file.flush()
        # FFmpeg reads this file, on one thread, and makes no room for more pixels than allowed.
        options = f"protocol_whitelist;file|max_pixels;{bounds.pixels}|threads;1"
        self._child = subprocess.Popen(  # noqa: S603  # our own interpreter
            [sys.executable, "-m", "fovea_survey.video.video_decoder", self._file.name, str(bounds.pixels)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(OPENCV_FFMPEG_CAPTURE_OPTIONS=options, OPENCV_LOG_LEVEL="SILENT"),
        )
        try:
            self._width, self._height, self.count, self.fps = self._opened(bounds)
        except BaseException:
            self.close()
            raise

    def _opened(self, bounds: DecodeBounds) -> tuple[int, int, int, float]:
        head = self._out.read(_HEAD.size)
        if len(head) < _HEAD.size:
            hint = "Supported are MP4 and WebM with common codecs. Check that the file plays and is complete."
            raise Malformed("The video can't be opened.", hint=hint, field="body")
        width, height, count, fps = _HEAD.unpack(head)
        if width * height > bounds.pixels:
            detail = f"The video's frames are {width:,}×{height:,} pixels, {width * height:,}; the limit is "
            raise TooLarge(f"{detail}{bounds.pixels:,}.", hint="Scale it before sending.", field="body")
        return width, height, count, fps if 0 < fps <= MAX_FPS else 0.0  # NaN is not

    def __iter__(self) -> Iterator[bytes]:
        """Frame after frame; the child stops with the iteration."""
        mark = _BROKEN
        try:
            while len(head := self._out.read(_MARK.size)) == _MARK.size:
                mark, seconds = _MARK.unpack(head)
                if mark != _FRAME:
                    break
                self.seconds = None if math.isnan(seconds) else seconds
                pixels = self._out.read(self._width * self._height * 3)
                if len(pixels) < self._width * self._height * 3:
                    break
                out = io.BytesIO()
                Image.frombytes("RGB", (self._width, self._height), pixels, "raw", "BGR").save(out, "BMP")
                yield out.getvalue()
            if mark != _END:
                yield BREAK_OFF
        finally:
            self.close()

    def close(self) -> None:
        """Stop the child and forget the file."""
        self._child.kill()
        self._out.close()
        self._child.wait()
        self._file.close()

    @property
    def _out(self) -> IO[bytes]:
        if self._child.stdout is None:
            raise AssertionError("stdout is a pipe")
        return self._child.stdout


def main() -> None:
    """The child: decode the file of the first argument onto standard output."""
    import cv2  # noqa: PLC0415  # only the child needs it, and only where it is installed

    path, most = sys.argv[1], int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (CHILD_MEMORY_BYTES, CHILD_MEMORY_BYTES))
    cv2.setNumThreads(1)
    film, out = cv2.VideoCapture(path, cv2.CAP_FFMPEG), sys.stdout.buffer
    if not film.isOpened():
        return
    width, height, stated = (
        int(film.get(what)) for what in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_COUNT)
    )
    if not 0 < width <= MAX_SIDE or not 0 < height <= MAX_SIDE:
        return
    out.write(_HEAD.pack(width, height, max(stated, 0), film.get(cv2.CAP_PROP_FPS)))
    done, before = 0, -1.0
    while width * height <= most:
        good, frame = film.read()
        if not good:
            break
        if frame.shape != (height, width, 3):
            frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        seconds = film.get(cv2.CAP_PROP_POS_MSEC) / 1000
        out.write(_MARK.pack(_FRAME, seconds if before < seconds else math.nan) + frame.tobytes())
        done, before = done + 1, max(before, seconds)
    out.write(_MARK.pack(_BROKEN if done < 0.9 * stated else _END, math.nan))
    out.flush()


if __name__ == "__main__":
    main()
