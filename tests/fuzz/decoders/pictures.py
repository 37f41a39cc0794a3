"""Pictures and masks, as callers send them."""

import io

import numpy as np
from PIL import Image

from fovea.errors import Malformed
from shared.vision.decode import decode
from shared.vision.limits import DecodeBounds
from shared.vision.mask_regions import decode_run_lengths
from tests.fuzz.harness import Harness

BOUNDS = DecodeBounds(bytes=2**20, pixels=10_000, max_side=500)


def _page(shade: int = 0) -> Image.Image:
    return Image.fromarray((np.arange(12 * 9 * 3) + shade).astype(np.uint8).reshape(12, 9, 3))


def encode_page(form: str, pages: int = 1) -> bytes:
    out = io.BytesIO()
    more = {"save_all": True, "append_images": [_page(50 * number) for number in range(1, pages)]} if pages > 1 else {}
    _page().save(out, form, **more)
    return out.getvalue()


def _run_lengths(data: bytes) -> object:
    try:
        return decode_run_lengths(data.decode("latin-1"), 3, 5)
    except ValueError as error:
        raise Malformed("no run lengths") from error


_FORMS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
HARNESSES: dict[str, Harness] = {
    "picture": Harness(lambda data: decode(data, BOUNDS), tuple(map(encode_page, _FORMS))),
    "run-lengths": Harness(_run_lengths, (b"632NO010O0124", b"?")),
}
