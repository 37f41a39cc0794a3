"""Run lengths of Label Studio's brush: a bit stream of runs over a picture of four equal channels.

Header: 32 bits number of values, 5 bits word size − 1, 4 × 4 bits sizes of run lengths − 1. Then runs: 1 bit whether
the value repeats, 2 bits which size the length has, the length − 1, and one word, or as many as there are values.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fovea.errors import Malformed

Mask = NDArray[np.bool_]

WORD = 8
SIZES = (3, 4, 8, 16)
CHANNELS = 4


def encode_brush(mask: Mask) -> list[int]:
    """A mask (h, w) as Label Studio's `rle`: bytes 0…255."""
    values = np.repeat(mask.ravel(), CHANNELS)
    ends = np.flatnonzero(np.diff(values)) + 1
    starts = np.concatenate([[0], ends])
    lengths = np.diff(np.concatenate([starts, [values.size]]))
    bits = [f"{values.size:032b}", f"{WORD - 1:05b}", *(f"{size - 1:04b}" for size in SIZES)]
    for start, length in zip(starts, lengths, strict=True):
        word = "11111111" if values[start] else "00000000"
        bits += [f"1{_length_bits(part)}{word}" for part in _parts(int(length))]
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return list(int(stream, 2).to_bytes(len(stream) // 8, "big"))


def decode_brush(rle: Sequence[int], height: int, width: int) -> Mask:
    """The mask (h, w) of an `rle`, where the last channel is not 0; Malformed if it is not of such a picture."""
    try:
        # bytes() of a number makes that many zeros.
        bits = "".join(f"{byte:08b}" for byte in bytes(list(rle)))
    except (TypeError, ValueError) as error:
        raise Malformed("The brush's run lengths are not bytes.", field="rle") from error
    wanted = height * width * CHANNELS
    if len(bits) < 53 or int(bits[:32], 2) != wanted:
        raise Malformed(f"The brush's run lengths are not of a picture of {width} × {height} pixels.", field="rle")
    word = int(bits[32:37], 2) + 1
    sizes = [int(bits[place : place + 4], 2) + 1 for place in range(37, 53, 4)]
    values = _read_runs(bits, 53, word, sizes, wanted)
    return np.asarray(values.reshape(height, width, CHANNELS)[..., -1] > 0)


def _read_runs(bits: str, at: int, word: int, sizes: Sequence[int], wanted: int) -> NDArray[np.uint32]:
    """The values [wanted] of a stream from its bit `at`."""
    values, done = np.zeros(wanted, np.uint32), 0
    while done < wanted:
        if at + 3 > len(bits):
            raise Malformed("The brush's run lengths end too early.", field="rle")
        repeats, size = bits[at] == "1", sizes[int(bits[at + 1 : at + 3], 2)]
        begin = at + 3 + size
        length = int(bits[at + 3 : begin] or "0", 2) + 1
        words = 1 if repeats else length
        at = begin + words * word
        if at > len(bits) or done + length > wanted:
            raise Malformed("The brush's run lengths do not fit their picture.", field="rle")
        found = [int(bits[place : place + word], 2) for place in range(begin, at, word)]
        values[done : done + length] = found
        done += length
    return values


def _parts(length: int) -> list[int]:
    """A run in pieces that the largest size can state."""
    most = 2 ** SIZES[-1]
    return [most] * (length // most) + ([length % most] if length % most else [])


def _length_bits(length: int) -> str:
    """Which size a length is written in, and the length."""
    place = next(place for place, size in enumerate(SIZES) if length <= 2**size)
    return f"{place:02b}{length - 1:0{SIZES[place]}b}"
