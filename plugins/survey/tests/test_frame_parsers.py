"""Frames are found in bytes however they are cut, and what is broken does not hide what comes after."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fovea.errors import FoveaError, InvalidOption, TooLarge, UnsupportedMedia
from fovea_survey.video.frame_parsers import FileParser, FrameParser, JpegParser, MultipartParser, read_pages
from shared.vision.decode import decode
from shared.vision.limits import DecodeBounds

BOUNDS = DecodeBounds(bytes=200_000, pixels=100_000)


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
    assert _run(JpegParser(BOUNDS), b"".join(JPEGS), piece) == JPEGS


def test_a_progressive_jpeg_and_one_with_a_thumbnail_are_one_frame_each():
    exif = Image.Exif()
    exif[0x010E] = "\xff\xd9 is not the end"
    with_thumbnail = _file(5, comment=_file(1)[:2000])
    for frame in (_file(20, progressive=True), _file(20, exif=exif.tobytes()), with_thumbnail):
        assert _run(JpegParser(BOUNDS), frame + JPEGS[0], 100) == [frame, JPEGS[0]]


def test_a_frame_that_breaks_off_does_not_swallow_the_next():
    cut = JPEGS[1][: len(JPEGS[1]) // 2]
    found = _run(JpegParser(BOUNDS), JPEGS[0] + cut + JPEGS[2], 77)
    assert (found[0], found[-1], len(found)) == (JPEGS[0], JPEGS[2], 3)
    decode(found[-1], BOUNDS)


def test_garbage_between_frames_is_a_frame_that_nobody_can_decode():
    found = _run(JpegParser(BOUNDS), JPEGS[0] + b"garbage" + JPEGS[1], 50)
    assert found == [JPEGS[0], b"garbage", JPEGS[1]]
    with pytest.raises(FoveaError):
        decode(found[1], BOUNDS)


@given(st.binary(max_size=400), st.integers(1, 90))
def test_no_bytes_make_the_splitter_hang_or_lose_their_order(data, piece):
    assert _run(JpegParser(BOUNDS), data + JPEGS[0], piece)[-1].endswith(JPEGS[0][-20:])


def test_a_frame_without_end_is_refused():
    split = JpegParser(DecodeBounds(bytes=5000))
    with pytest.raises(TooLarge, match="5,000"):
        _run(split, JPEGS[0][:-2] + b"\x00" * 6000, 1000)


@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_parts_come_out_of_multipart(piece):
    body = b"".join(
        b"--edge\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b\r\n" % (len(j), j) for j in JPEGS
    )
    split = MultipartParser('multipart/x-mixed-replace; boundary="edge"', BOUNDS)
    assert _run(split, body + b"--edge--\r\n", piece) == JPEGS


def test_multipart_that_ends_without_its_boundary_keeps_the_last_part():
    body = b"--edge\r\n\r\n" + JPEGS[0] + b"\r\n--edge\r\n\r\n" + JPEGS[1]
    assert _run(MultipartParser("multipart/x-mixed-replace; boundary=edge", BOUNDS), body, 100) == JPEGS[:2]


def test_form_fields_are_told_to_go_into_the_address():
    body = b'--e\r\nContent-Disposition: form-data; name="confidence"\r\n\r\n0.5\r\n--e--'
    with pytest.raises(InvalidOption, match="no form fields") as caught:
        _run(MultipartParser("multipart/form-data; boundary=e", BOUNDS), body, 30)
    assert caught.value.field == "confidence"


def test_a_file_in_a_form_is_taken_apart():
    head = b'--e\r\nContent-Disposition: form-data; name="file"; filename="a.mjpeg"\r\n\r\n'
    body = head + JPEGS[0] + JPEGS[1] + b"\r\n--e--\r\n"
    assert _run(MultipartParser("multipart/form-data; boundary=e", BOUNDS), body, 99) == JPEGS[:2]


@pytest.mark.parametrize(("kind", "lossless"), [("GIF", False), ("TIFF", True), ("WEBP", False), ("PNG", True)])
def test_files_of_many_frames_are_taken_apart(kind, lossless):
    first, *others = (_picture(shade) for shade in (10, 90, 170))
    out = io.BytesIO()
    first.save(out, kind, save_all=True, append_images=others)
    found = _run(FileParser(BOUNDS), out.getvalue(), 500)
    assert len(found) == 3
    for frame, shade in zip(found, (10, 90, 170), strict=True):
        pixels = decode(frame, BOUNDS).pixels
        assert abs(pixels.mean() - np.asarray(_picture(shade)).mean()) < (0.01 if lossless else 8)


def test_a_file_that_breaks_off_before_its_second_frame_is_left_to_the_decoder():
    out = io.BytesIO()
    _picture(10).save(out, "GIF", save_all=True, append_images=[_picture(90)])
    whole = out.getvalue()
    for length in range(20, len(whole), 7):
        assert all(isinstance(frame, bytes) for frame in _run(FileParser(BOUNDS), whole[:length], 50))


def test_a_single_picture_is_one_frame_as_it_is():
    png = _file(3, "PNG")
    assert _run(FileParser(BOUNDS), png, 64) == [png]
    assert _run(FileParser(BOUNDS), b"".join(JPEGS), 64) == JPEGS


def test_videos_that_are_not_read_are_refused_with_a_way_out():
    with pytest.raises(UnsupportedMedia, match="MP4 and WebM") as caught:
        _run(FileParser(BOUNDS), b"RIFF\x00\x00\x00\x00AVI LIST" + b"\x00" * 50, 1000)
    assert "ffmpeg" in str(caught.value.hint)


def test_without_a_decoder_every_video_is_refused_with_a_way_out(monkeypatch):
    monkeypatch.setattr("fovea_survey.video.frame_parsers.can_decode", lambda: False)
    with pytest.raises(UnsupportedMedia, match="not installed") as caught:
        _run(FileParser(BOUNDS), b"\x1aE\xdf\xa3" + b"\x00" * 50, 1000)
    assert "ffmpeg" in str(caught.value.hint)


def test_a_file_too_large_or_broken_is_left_to_the_decoder():
    out = io.BytesIO()
    Image.new("RGB", (2000, 2000)).save(
        out, "GIF", save_all=True, append_images=[Image.new("RGB", (2000, 2000), "red")]
    )
    assert list(read_pages(out.getvalue(), BOUNDS)) == [out.getvalue()]
    assert list(read_pages(b"GIF89a broken", BOUNDS)) == [b"GIF89a broken"]
    with pytest.raises(TooLarge):
        _run(FileParser(DecodeBounds(bytes=100)), b"x" * 101, 60)
