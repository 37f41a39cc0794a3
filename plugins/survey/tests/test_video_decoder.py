"""Films: their frames come out in order and upright, memory stays flat, and what is broken takes nothing with it."""

import struct
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from fovea.errors import Malformed, TooLarge
from fovea_survey.video.frame_parsers import FileParser
from fovea_survey.video.video_decoder import VideoFile
from shared.vision.decode import decode
from shared.vision.limits import DecodeBounds

BOUNDS = DecodeBounds(bytes=10_000_000, pixels=200_000)
SHADES = tuple(range(0, 240, 20))
CODECS = {"mp4": "mp4v", "webm": "VP80", "mkv": "VP90"}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """The same twelve grey frames in each container; the left quarter of all is black."""
    folder: Path = tmp_path_factory.mktemp("films")
    for ending, codec in CODECS.items():
        out = cv2.VideoWriter(str(folder / f"film.{ending}"), cv2.VideoWriter.fourcc(*codec), 10, (160, 120))
        for shade in SHADES:
            frame = np.full((120, 160, 3), shade, np.uint8)
            frame[:, :40] = 0
            out.write(frame)
        out.release()
    return {ending: (folder / f"film.{ending}").read_bytes() for ending in CODECS}


def shades(frames: list[bytes]) -> list[float]:
    return [float(decode(frame, BOUNDS).pixels[60, 100].mean()) for frame in frames]


@pytest.mark.parametrize("ending", CODECS)
def test_the_frames_of_a_film_come_out_in_order(films, ending):
    split = FileParser(BOUNDS)
    assert list(split.feed(films[ending])) == []
    found = list(split.close())
    assert split.frames == len(SHADES)
    assert shades(found) == pytest.approx(SHADES, abs=6)
    first = decode(found[-1], BOUNDS).pixels
    assert (first.shape, int(first[:, :30].max()) < 12) == ((120, 160, 3), True)


def test_a_film_is_turned_upright(films):
    data = bytearray(films["mp4"])
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    assert decode(next(iter(VideoFile(bytes(data), BOUNDS))), BOUNDS).pixels.shape == (160, 120, 3)
    last = decode(list(VideoFile(bytes(data), BOUNDS))[-1], BOUNDS).pixels
    assert last[:30].max() < 12 < last[60:].min()


def test_a_film_that_breaks_off_ends_with_a_broken_frame(films):
    found = list(VideoFile(films["webm"][: len(films["webm"]) // 2], BOUNDS))
    assert 1 < len(found) < len(SHADES)
    with pytest.raises(Exception, match="Not a picture"):
        decode(found[-1], BOUNDS)


@pytest.mark.parametrize("ending", CODECS)
def test_what_is_no_film_is_malformed(films, ending):
    with pytest.raises(Malformed, match="can't be opened"):
        VideoFile(films[ending][:40] + bytes(200), BOUNDS)


def test_frames_over_the_limit_are_refused_before_any_is_taken(films):
    with pytest.raises(TooLarge, match="160×120"):
        VideoFile(films["mp4"], DecodeBounds(pixels=19_199))


def test_the_decoder_ends_with_the_iteration(films):
    film = VideoFile(films["mp4"], BOUNDS)
    frames = iter(film)
    next(frames)
    child, file = psutil.Process(film._child.pid), Path(film._file.name)
    assert (child.is_running(), file.exists()) == (True, True)
    frames.close()  # type: ignore[attr-defined]  # a generator
    assert (child.is_running(), file.exists()) == (False, False)


def test_a_decoder_that_dies_leaves_a_broken_frame(films):
    film = VideoFile(films["mp4"], BOUNDS)
    film._child.kill()
    assert list(film)[-1] == b"broken frame"
