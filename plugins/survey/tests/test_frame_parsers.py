"""Frames of videos: parsers of streams, the decoder of files."""

import io
import struct
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fovea.errors import FoveaError, InvalidOption, Malformed, TooLarge, UnsupportedMedia
from fovea_survey.video.frame_parsers import FileParser, FrameParser, JpegParser, MultipartParser, read_pages
from fovea_survey.video.video_decoder import VideoFile
from plugins.survey.tests.films import write_film
from shared.vision.decode import decode
from shared.vision.limits import DecodeBounds
from tests.harness.hypothesis_profiles import in_depth

SMALL = DecodeBounds(bytes=200_000, pixels=100_000)


def _picture(shade: int, side: int = 24) -> Image.Image:
    noise = np.random.default_rng(shade).integers(0, 40, (side, side + 8, 3), np.uint8)
    return Image.fromarray(noise + np.uint8(shade))


def _file(shade: int, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    _picture(shade).save(out, kind, **options)
    return out.getvalue()


JPEGS = [_file(shade) for shade in (10, 60, 110, 160)]


def _run(split: FrameParser, data: bytes, piece: int) -> list[bytes]:
    found = [frame for at in range(0, len(data), piece) for frame in split.feed(data[at : at + piece])]
    return found + list(split.close())


@given(st.integers(1, 3000))
def test_concatenated_jpegs_come_out_whole_however_they_arrive(piece):
    assert _run(JpegParser(SMALL), b"".join(JPEGS), piece) == JPEGS


def test_a_progressive_jpeg_and_one_with_a_thumbnail_are_one_frame_each():
    exif = Image.Exif()
    exif[0x010E] = "\xff\xd9 is not the end"
    for frame in (_file(20, progressive=True), _file(20, exif=exif.tobytes()), _file(5, comment=_file(1)[:2000])):
        assert _run(JpegParser(SMALL), frame + JPEGS[0], 100) == [frame, JPEGS[0]]


def test_cut_frames_and_garbage_swallow_no_frame_and_one_without_end_is_refused():
    found = _run(JpegParser(SMALL), JPEGS[0] + JPEGS[1][: len(JPEGS[1]) // 2] + JPEGS[2], 77)
    assert (found[0], found[-1], len(found)) == (JPEGS[0], JPEGS[2], 3)
    decode(found[-1], SMALL)
    found = _run(JpegParser(SMALL), JPEGS[0] + b"garbage" + JPEGS[1], 50)
    assert found == [JPEGS[0], b"garbage", JPEGS[1]]
    with pytest.raises(FoveaError):
        decode(found[1], SMALL)
    with pytest.raises(TooLarge, match="5,000"):
        _run(JpegParser(DecodeBounds(bytes=5000)), JPEGS[0][:-2] + b"\x00" * 6000, 1000)


@given(st.binary(max_size=400), st.integers(1, 90))
def test_no_bytes_make_the_splitter_hang_or_lose_their_order(data, piece):
    assert _run(JpegParser(SMALL), data + JPEGS[0], piece)[-1].endswith(JPEGS[0][-20:])


def test_parts_come_out_of_multipart_also_without_its_last_boundary_and_of_a_form():
    part = b"--edge\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b\r\n"
    body = b"".join(part % (len(one), one) for one in JPEGS)
    for piece in (1, 7, 10_000):
        split = MultipartParser('multipart/x-mixed-replace; boundary="edge"', SMALL)
        assert _run(split, body + b"--edge--\r\n", piece) == JPEGS
    body = b"--edge\r\n\r\n" + JPEGS[0] + b"\r\n--edge\r\n\r\n" + JPEGS[1]
    assert _run(MultipartParser("multipart/x-mixed-replace; boundary=edge", SMALL), body, 100) == JPEGS[:2]
    head = b'--e\r\nContent-Disposition: form-data; name="file"; filename="a.mjpeg"\r\n\r\n'
    body = head + JPEGS[0] + JPEGS[1] + b"\r\n--e--\r\n"
    assert _run(MultipartParser("multipart/form-data; boundary=e", SMALL), body, 99) == JPEGS[:2]
    body = b'--e\r\nContent-Disposition: form-data; name="confidence"\r\n\r\n0.5\r\n--e--'
    with pytest.raises(InvalidOption, match="no form fields", check=lambda told: told.field == "confidence"):
        _run(MultipartParser("multipart/form-data; boundary=e", SMALL), body, 30)


@pytest.mark.parametrize(("kind", "lossless"), [("GIF", False), ("TIFF", True), ("WEBP", False), ("PNG", True)])
def test_files_of_many_frames_are_taken_apart(kind, lossless):
    first, *others = (_picture(shade) for shade in (10, 90, 170))
    out = io.BytesIO()
    first.save(out, kind, save_all=True, append_images=others)
    found = _run(FileParser(SMALL), out.getvalue(), 500)
    assert len(found) == 3
    for frame, shade in zip(found, (10, 90, 170), strict=True):
        pixels = decode(frame, SMALL).pixels
        assert abs(pixels.mean() - np.asarray(_picture(shade)).mean()) < (0.01 if lossless else 8)


def test_a_single_picture_is_one_frame_and_a_broken_film_left_to_the_decoder():
    out = io.BytesIO()
    _picture(10).save(out, "GIF", save_all=True, append_images=[_picture(90)])
    whole = out.getvalue()
    for length in range(20, len(whole), 7):
        assert all(isinstance(frame, bytes) for frame in _run(FileParser(SMALL), whole[:length], 50))
    png = _file(3, "PNG")
    assert (_run(FileParser(SMALL), png, 64), _run(FileParser(SMALL), b"".join(JPEGS), 64)) == ([png], JPEGS)


def test_videos_that_are_not_read_are_refused_with_a_way_out_and_all_without_a_decoder(monkeypatch):
    with pytest.raises(UnsupportedMedia, match="MP4 and WebM", check=lambda told: "ffmpeg" in told.hint):
        _run(FileParser(SMALL), b"RIFF\x00\x00\x00\x00AVI LIST" + b"\x00" * 50, 1000)
    monkeypatch.setattr("fovea_survey.video.frame_parsers.can_decode", lambda: False)
    with pytest.raises(UnsupportedMedia, match="not installed", check=lambda told: "ffmpeg" in told.hint):
        _run(FileParser(SMALL), b"\x1aE\xdf\xa3" + b"\x00" * 50, 1000)


def test_a_file_too_large_or_broken_is_left_to_the_decoder():
    out = io.BytesIO()
    large = [Image.new("RGB", (400, 300), colour) for colour in ("black", "red")]
    large[0].save(out, "GIF", save_all=True, append_images=large[1:])
    assert list(read_pages(out.getvalue(), SMALL)) == [out.getvalue()]
    assert list(read_pages(b"GIF89a broken", SMALL)) == [b"GIF89a broken"]
    with pytest.raises(TooLarge):
        _run(FileParser(DecodeBounds(bytes=100)), b"x" * 101, 60)


BOUNDS = DecodeBounds(bytes=10_000_000, pixels=200_000)
SHADES = tuple(range(0, 240, 20))
ENDINGS = ("mp4", "webm", "mkv")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """The same twelve grey frames in each container; the left quarter of all is black."""
    folder, frames = tmp_path_factory.mktemp("films"), [np.full((120, 160, 3), shade, np.uint8) for shade in SHADES]
    for frame in frames:
        frame[:, :40] = 0
    return {ending: write_film(folder / f"film.{ending}", frames) for ending in ENDINGS}


@pytest.mark.parametrize("ending", in_depth(ENDINGS, ("mp4", "webm")))
def test_the_frames_of_a_film_come_out_in_order(films, ending):
    split = FileParser(BOUNDS)
    assert list(split.feed(films[ending])) == []
    found = list(split.close())
    assert split.frames == len(SHADES)
    assert [float(decode(frame, BOUNDS).pixels[60, 100].mean()) for frame in found] == pytest.approx(SHADES, abs=6)
    first = decode(found[-1], BOUNDS).pixels
    assert (first.shape, int(first[:, :30].max()) < 12) == ((120, 160, 3), True)


def test_a_film_is_turned_upright(films):
    data = bytearray(films["mp4"])
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    first, *_, last = (decode(frame, BOUNDS).pixels for frame in VideoFile(bytes(data), BOUNDS))
    assert first.shape == last.shape == (160, 120, 3)
    assert last[:30].max() < 12 < last[60:].min()


def test_what_is_no_film_is_malformed_and_one_that_breaks_off_or_whose_decoder_dies_ends_with_a_broken_frame(films):
    with pytest.raises(Malformed, match="can't be opened"):
        VideoFile(films["webm"][:40] + bytes(200), BOUNDS)
    with pytest.raises(TooLarge, match="160×120"):  # before any frame is taken
        VideoFile(films["mp4"], DecodeBounds(pixels=19_199))
    found = list(VideoFile(films["webm"][: len(films["webm"]) // 2], BOUNDS))
    assert 1 < len(found) < len(SHADES)
    with pytest.raises(Exception, match="Not a picture"):
        decode(found[-1], BOUNDS)
    film = VideoFile(films["mp4"], BOUNDS)
    film._child.kill()
    assert list(film)[-1] == b"broken frame"


def test_the_decoder_ends_with_the_iteration(films):
    film = VideoFile(films["mp4"], BOUNDS)
    frames = iter(film)
    next(frames)
    child, file = psutil.Process(film._child.pid), Path(film._file.name)
    assert (child.is_running(), file.exists()) == (True, True)
    frames.close()  # type: ignore[attr-defined]  # a generator
    assert (child.is_running(), file.exists()) == (False, False)
