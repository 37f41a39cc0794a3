"""Films, frames in other containers, and tracks, as callers send them."""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from fovea_survey.gpx import parse_gpx
from fovea_survey.video.frame_parsers import choose_parser
from plugins.survey.tests.films import write_film
from tests.fuzz.decoders.pictures import BOUNDS, encode_page
from tests.fuzz.harness import Harness

_TRACK = b"""<gpx><trk><trkseg>
<trkpt lat="52.5" lon="13.4"><time>2026-01-02T10:00:00Z</time></trkpt>
<trkpt lat="52.6" lon="13.5"><time>2026-01-02T10:00:09Z</time></trkpt>
</trkseg></trk></gpx>"""


@cache
def _film() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_film(Path(folder) / "x.mp4", [np.full((16, 16, 3), 60 * n, np.uint8) for n in range(3)], 5)


def _frames(data: bytes) -> object:
    """The first line is the content type; what follows comes in two pieces."""
    media, _, body = data.partition(b"\n")
    parser = choose_parser(media.decode("latin-1"), BOUNDS)
    for piece in (body[: len(body) // 2], body[len(body) // 2 :]):
        for _, _frame in zip(range(20), parser.feed(piece), strict=False):
            pass
    return [frame for _, frame in zip(range(20), parser.close(), strict=False)]


def _part(media: bytes, *files: bytes) -> bytes:
    parts = b"".join(b"--x\r\ncontent-type: image/jpeg\r\n\r\n" + file + b"\r\n" for file in files)
    return media + b"\n" + parts + b"--x--\r\n"


HARNESSES: dict[str, Harness] = {
    "frames": Harness(_frames, (
        *(b"image/gif\n" + encode_page(form, 3) for form in ("GIF", "TIFF", "WEBP", "PNG")),
        b"video/x-motion-jpeg\n" + encode_page("JPEG") * 2,
        _part(b"multipart/x-mixed-replace; boundary=x", encode_page("JPEG"), encode_page("GIF", 2)),
        b'multipart/form-data; boundary="x"\n--x\r\ncontent-disposition: form-data; name="a"\r\n\r\n1\r\n--x--',
    ), words=(b"--x", b"\r\n\r\n", b"\xff\xd8\xff", b"\xff\xd9", b"\xff\xda\0\0", b"boundary=", b'name*="', b"\n")),
    "film": Harness(lambda data: _frames(b"video/mp4\n" + data), (_film(),), words=(b"moov", b"mdat", b"\0\0\0\1")),
    "gpx": Harness(parse_gpx, (_TRACK,), words=(
        b"-0001-01-01", b"9999-12-31T23:59:59-23:59", b"nan", b"1e999", b"<!DOCTYPE a>", b"&a;", b"+24:00",
    )),
}  # fmt: skip
