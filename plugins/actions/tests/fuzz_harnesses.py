"""Matrices as callers send them: arrays and archives of arrays."""

import io
import zipfile

import numpy as np

from fovea_actions.segments.npy_inputs import read_matrices
from tests.fuzz.decoders.forms import make_zip
from tests.fuzz.harness import Harness


def _matrices(*, is_archive: bool) -> bytes:
    out = io.BytesIO()
    if is_archive:
        np.savez_compressed(out, a=np.ones((2, 3), np.float32), b=np.ones(4, ">f8"))
    else:
        np.save(out, np.ones((2, 3), np.float32))
    return out.getvalue()


HARNESSES: dict[str, Harness] = {
    "matrices": Harness(
        lambda data: read_matrices(data, "features"),
        (_matrices(is_archive=True), _matrices(is_archive=False), make_zip(zipfile.ZIP_LZMA).replace(b".dcm", b".npy")),
        words=(b"(-1,)", b"(9999999999, 9)", b"True", b"'O'", b"'<U9'", b"'V1'", b"(", b"\x0e\0", b"[" * 100),
    ),
}  # fmt: skip
