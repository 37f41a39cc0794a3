"""Matrices that callers send: `.npy` and `.npz` read without running anything that is inside, sizes checked first.

Knows the two file formats and rows of numbers; knows nothing of what a matrix means. Pickled objects are never read.
"""

import io
import math
import zipfile
from typing import IO, Any

import numpy as np

from fovea.errors import FoveaError, InvalidOption, Malformed, TooLarge, UnsupportedMedia

MAX_NUMBERS = 16_000_000
"""Most numbers in one matrix, and in all matrices of an archive: 64 MB of float32."""

_ENTRIES = 16


def read_matrices(given: Any, field: str) -> dict[str, np.ndarray]:
    """The matrices in a value by name: an `.npz` has its own names, anything else is one under the field's name.

    Returns float32 arrays with finite values, of one or two axes. Raises Malformed, TooLarge, UnsupportedMedia or
    InvalidOption, whose `field` names what is wrong.
    """
    if not isinstance(given, bytes):
        return {field: _checked(_from_rows(given, field), field)}
    if given[:4] == b"PK\x03\x04":
        return _from_zip(given, field)
    if given[:6] == b"\x93NUMPY":
        return {field: _checked(_from_npy(io.BytesIO(given), field), field)}
    raise UnsupportedMedia(
        f"{field} is neither .npy nor .npz.", hint="Write it with numpy.save or numpy.savez.", field=field
    )


def _from_rows(rows: Any, field: str) -> np.ndarray:
    """Rows of numbers, all of the same length."""
    try:
        with np.errstate(over="ignore"):
            return np.asarray(rows, np.float32)
    except ValueError as error:
        raise InvalidOption(f"The rows of {field} differ in length.", field=field) from error


def _from_zip(given: bytes, field: str) -> dict[str, np.ndarray]:
    """The `.npy` files of an archive. No entry is unpacked beyond what its header allows."""
    try:
        with zipfile.ZipFile(io.BytesIO(given)) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
            if not 0 < len(entries) <= _ENTRIES:
                detail = f"{field} holds {len(entries)} arrays; 1 to {_ENTRIES} are read."
                raise Malformed(detail, field=field)  # noqa: TRY301  # besides what it is about
            found, left = {}, MAX_NUMBERS
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                with archive.open(entry) as stream:
                    found[name] = _checked(_from_npy(stream, name), name)
                if (left := left - found[name].size) < 0:
                    detail = f"The arrays of {field} have more than {MAX_NUMBERS:,} numbers together."
                    raise TooLarge(detail, field=field)  # noqa: TRY301
            return found
    except FoveaError:
        raise
    except (
        Exception
    ) as error:  # broken bytes lead the reader and its four decompressors to a dozen unrelated exceptions
        raise Malformed(f"{field} is a broken archive: {error}.", field=field) from error


def _from_npy(stream: IO[bytes], field: str) -> np.ndarray:
    """One array; what its header says is checked before anything else is read."""
    shape, fortran, dtype = _header(stream, field)
    count = math.prod(shape)
    if min(shape, default=0) < 0:
        raise Malformed(f"{field} has an axis of negative length.", field=field)
    if dtype.kind not in "fiub":
        raise UnsupportedMedia(f"{field} holds {dtype}, not numbers.", hint="Save it as float32.", field=field)
    if not 1 <= len(shape) <= 2:
        raise InvalidOption(f"{field} has {len(shape)} axes; a matrix has two.", field=field)
    if count > MAX_NUMBERS:
        raise TooLarge(f"{field} has {count:,} numbers; the limit is {MAX_NUMBERS:,}.", field=field)
    raw = stream.read(count * dtype.itemsize)
    if len(raw) < count * dtype.itemsize:
        raise Malformed(f"{field} ends after {len(raw):,} of {count * dtype.itemsize:,} bytes.", field=field)
    array = np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float32)


def _header(stream: IO[bytes], field: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type from the head of an `.npy` file."""
    try:
        version = np.lib.format.read_magic(stream)  # type: ignore[no-untyped-call]  # numpy has no types here
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)  # type: ignore[no-untyped-call]
    except Exception as error:  # numpy reads the header as Python's syntax, which fails in many ways
        raise Malformed(f"{field} has no readable .npy header.", field=field) from error
    return tuple(map(int, shape)), fortran, dtype  # True is a length to numpy, and none to others


def _checked(array: np.ndarray, field: str) -> np.ndarray:
    if not 1 <= array.ndim <= 2 or array.size == 0:
        raise InvalidOption(f"{field} must be a matrix that is not empty, not {array.shape}.", field=field)
    if array.size > MAX_NUMBERS:
        raise TooLarge(f"{field} has {array.size:,} numbers; the limit is {MAX_NUMBERS:,}.", field=field)
    if not np.isfinite(array).all():
        raise InvalidOption(f"{field} holds values that are not finite.", field=field)
    return array
