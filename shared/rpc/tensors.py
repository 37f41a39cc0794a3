"""Codec of one Open Inference tensor: numpy to and from raw bytes or a list of values.

Every failure is a `Malformed` that names the tensor. Decoded arrays are views of their bytes wherever alignment allows,
so they may be read-only.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import ml_dtypes
import numpy as np

from fovea.errors import Fault, Malformed, TooLarge

DTYPES: Final[Mapping[str, np.dtype[Any]]] = MappingProxyType(
    {"BOOL": np.dtype(np.bool_)}
    | {f"UINT{8 * n}": np.dtype(f"<u{n}") for n in (1, 2, 4, 8)}
    | {f"INT{8 * n}": np.dtype(f"<i{n}") for n in (1, 2, 4, 8)}
    | {f"FP{8 * n}": np.dtype(f"<f{n}") for n in (2, 4, 8)}
    | {"BF16": np.dtype(ml_dtypes.bfloat16), "BYTES": np.dtype(np.object_)}
)
"""Numpy dtype of every datatype, little-endian as on the wire; BYTES are object arrays of `bytes`."""

_DATATYPES: Final[Mapping[np.dtype[Any], str]] = MappingProxyType({dtype: name for name, dtype in DTYPES.items()})

# Types that an element of a JSON list or of typed contents may have; `bool` is not an `int` here.
_VALUES: Final[Mapping[str, frozenset[type]]] = MappingProxyType(
    {"BOOL": frozenset({bool}), "BYTES": frozenset({str, bytes})}
    | {name: frozenset({int}) for name in DTYPES if "INT" in name}
    | {name: frozenset({int, float}) for name in ("FP16", "FP32", "FP64", "BF16")}
)

# Two-byte floats are judged by their exponent bits: numpy widens them one by one otherwise, 20 times slower.
_EXPONENT: Final[Mapping[str, int]] = MappingProxyType({"FP16": 0x7C00, "BF16": 0x7F80})

_MAX_RANK: Final = 32
_MAX_AXIS: Final = 2**31 - 1
_MAX_ITEMS: Final = 2**20  # of BYTES: each becomes an object of its own
_MAX_BYTES: Final = 2**40  # far above any body limit; the point is that sizes can be multiplied safely afterwards


def datatype_of(name: str, array: np.ndarray) -> str:
    """The Open Inference datatype of an array; a `Fault` of the model if none fits (complex numbers, dates)."""
    found = _DATATYPES.get(array.dtype.newbyteorder("<") if array.dtype.kind in "biuf" else array.dtype)
    if found is None and array.dtype.kind in "SU":
        found = "BYTES"
    if found is None:
        raise Fault(f"Tensor {name!r} has the dtype {array.dtype}, which Open Inference can't carry.", field=name)
    return found


def element_count(name: str, datatype: str, shape: Sequence[int]) -> int:
    """Elements of a tensor, once its datatype and shape are found good."""
    dtype = DTYPES.get(datatype)
    if dtype is None:
        detail = f"Tensor {name!r} has the unknown datatype {datatype!r}."
        raise Malformed(detail, field=name, hint=f"Known are {', '.join(DTYPES)}.")
    if len(shape) > _MAX_RANK:
        raise Malformed(f"Tensor {name!r} has {len(shape)} axes; at most {_MAX_RANK} are read.", field=name)
    if not all(0 <= axis <= _MAX_AXIS for axis in shape):
        raise Malformed(f"Tensor {name!r} has the shape {list(shape)}; axes are 0 to {_MAX_AXIS}.", field=name)
    if math.prod(max(axis, 1) for axis in shape) * dtype.itemsize > _MAX_BYTES:
        raise Malformed(f"Tensor {name!r} has the shape {list(shape)}, whose size overflows.", field=name)
    count = math.prod(shape)
    if datatype == "BYTES" and count > _MAX_ITEMS:
        raise TooLarge(f"Tensor {name!r} of BYTES has {count} elements; at most {_MAX_ITEMS} are read.", field=name)
    return count


def from_raw(
    name: str, datatype: str, shape: Sequence[int], raw: bytes | memoryview, *, finite: bool = True
) -> np.ndarray:
    """An array over little-endian, row-major bytes, exactly the tensor's; a view of them when they are aligned.

    BYTES elements each follow their length in four bytes; `finite` refuses NaN and infinities. Raises Malformed, with
    the name, if size, shape, datatype or content are not what they claim to be.
    """
    count = element_count(name, datatype, shape)
    if datatype == "BYTES":
        return _unpack(name, count, raw).reshape(shape)
    dtype = DTYPES[datatype]
    if len(raw) != count * dtype.itemsize:
        needs = f"takes {count * dtype.itemsize} bytes, but {len(raw)} came"
        raise Malformed(f"Tensor {name!r} of {datatype} {list(shape)} {needs}.", field=name)
    array = np.frombuffer(raw, np.uint8).view(dtype).reshape(shape) if count else np.empty(shape, dtype)
    if datatype == "BOOL" and count and array.view(np.uint8).max() > 1:
        raise Malformed(f"Tensor {name!r} of BOOL holds bytes other than 0 and 1.", field=name)
    if not array.flags.aligned:
        array = array.copy()
    return _checked(name, datatype, array) if finite else array


def to_raw(name: str, array: np.ndarray) -> bytes | memoryview:
    """Little-endian, row-major bytes of an array; a view of it when it is laid out so already."""
    datatype = datatype_of(name, array)
    if datatype == "BYTES":
        return b"".join(len(item).to_bytes(4, "little") + item for item in list_items(name, array))
    flat = np.ascontiguousarray(array, DTYPES[datatype]).reshape(-1)
    return flat.view(np.uint8).data


def from_values(
    name: str, datatype: str, shape: Sequence[int], values: Sequence[Any], *, finite: bool = True
) -> np.ndarray:
    """An array of flat, row-major values (JSON or typed contents); their kind never changes (no 1.5 → 1).

    Raises Malformed: number, type or range of the values don't fit, or one is NaN or infinite where `finite` is set.
    """
    count = element_count(name, datatype, shape)
    if len(values) != count:
        detail = f"Tensor {name!r} of shape {list(shape)} takes {count} values, but {len(values)} came."
        raise Malformed(detail, field=name)
    if not set(map(type, values)) <= _VALUES[datatype]:
        odd = next(value for value in values if type(value) not in _VALUES[datatype])
        raise Malformed(f"Tensor {name!r} of {datatype} holds a value of type {type(odd).__name__}.", field=name)
    if datatype == "BYTES":
        return _objects([v if isinstance(v, bytes) else v.encode() for v in values]).reshape(shape)
    try:
        with np.errstate(over="ignore"):  # an overflow becomes an infinity, which is refused below
            array = np.array(values, DTYPES[datatype]).reshape(shape)
    except (OverflowError, TypeError) as error:  # TypeError: what ml_dtypes says of an integer beyond floats
        raise Malformed(f"Tensor {name!r} holds a value out of range for {datatype}.", field=name) from error
    return _checked(name, datatype, array) if finite else array


def to_values(name: str, array: np.ndarray) -> list[Any]:
    """Flat, row-major values of an array, for JSON; `Malformed` if JSON can't carry them (NaN, not UTF-8)."""
    datatype = datatype_of(name, array)
    if datatype == "BYTES":
        try:
            return [item.decode() for item in list_items(name, array)]
        except UnicodeDecodeError as error:
            detail = f"Tensor {name!r} holds bytes that are not UTF-8 and can't be written as JSON."
            raise Malformed(detail, field=name, hint="Ask for it as binary data.") from error
    array = np.asarray(array, DTYPES[datatype])
    if not _finite(datatype, array):
        detail = f"Tensor {name!r} holds NaN or infinite values, which JSON can't carry."
        raise Malformed(detail, field=name, hint="Ask for it as binary data.")
    plain = array.astype(np.float32) if datatype == "BF16" else array
    return plain.reshape(-1).tolist()


def require_finite(feeds: Mapping[str, np.ndarray]) -> None:
    """Refuse tensors that hold NaN or infinite values; `Malformed` if one does (`field` names it)."""
    for name, array in feeds.items():
        _checked(name, datatype_of(name, array), array)


def _checked(name: str, datatype: str, array: np.ndarray) -> np.ndarray:
    if not _finite(datatype, array):
        raise Malformed(f"Tensor {name!r} of {datatype} holds NaN, infinite or out-of-range values.", field=name)
    return array


def _finite(datatype: str, array: np.ndarray) -> bool:
    if exponent := _EXPONENT.get(datatype):
        bits = np.ascontiguousarray(array).view(np.uint16)
        return array.size == 0 or int((bits & 0x7FFF).max()) < exponent
    return datatype not in {"FP32", "FP64"} or bool(np.isfinite(array).all())


def _unpack(name: str, count: int, raw: bytes | memoryview) -> np.ndarray:
    detail = f"Tensor {name!r} of BYTES: {len(raw)} bytes don't hold {count} length-prefixed elements."
    if count * 4 > len(raw):
        raise Malformed(detail, field=name)
    items, at = [], 0
    for _ in range(count):
        begin = at + 4
        at = begin + int.from_bytes(raw[at:begin], "little")
        if begin > len(raw) or at > len(raw):
            raise Malformed(detail, field=name)
        items.append(bytes(raw[begin:at]))
    if at != len(raw):
        raise Malformed(detail, field=name)
    return _objects(items)


def _objects(items: Sequence[bytes]) -> np.ndarray:
    # Filled, not converted: numpy would turn a list of equally long bytes into an array of fixed width.
    array = np.empty(len(items), np.object_)
    array[:] = items
    return array


def list_items(name: str, array: np.ndarray) -> list[bytes]:
    """Flat, row-major elements of BYTES, text as UTF-8; a `Fault` of the model if one is neither bytes nor text."""
    items = [item.encode() if isinstance(item, str) else item for item in array.reshape(-1).tolist()]
    if not all(isinstance(item, bytes) for item in items):
        raise Fault(f"Tensor {name!r} of BYTES holds elements that are neither bytes nor text.", field=name)
    return items
