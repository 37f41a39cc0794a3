"""Instruction-set levels that the kernels are built for, and where each library lies.

A library's name carries the digest of its sources, so that an old one is never loaded. Knows no compiler.
"""

import hashlib
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PLACE = Path(__file__).parent / "built"
_ROOM = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Target:
    """One level: the compiler's flags for it, and the processor's flags (as in /proc/cpuinfo) that it needs."""

    name: str
    flags: tuple[str, ...]
    needs: frozenset[str]


_V3 = frozenset({"avx2", "fma", "bmi2", "f16c"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_V4_BF16 = _V4 | {"avx512_vnni", "avx512_bf16"}
_V4_FLAGS = ("-march=x86-64-v4", "-mprefer-vector-width=512")
_VNNI = (*_V4_FLAGS, "-mavx512vnni")
_BF16 = (*_VNNI, "-mavx512bf16")
_LEVELS = {
    "x86_64": (
        Target("amx", (*_BF16, "-mamx-tile", "-mamx-bf16"), _V4_BF16 | {"amx_tile", "amx_bf16"}),
        Target("avx512bf16", _BF16, _V4_BF16),
        Target("avx512vnni", _VNNI, _V4 | {"avx512_vnni"}),
        Target("avx512", _V4_FLAGS, _V4),
        Target("avx2", ("-march=x86-64-v3",), _V3),
    )
}

TARGETS: tuple[Target, ...] = _LEVELS.get(platform.machine(), (Target("native", ("-march=native",), frozenset()),))
"""The levels of this kind of processor, best first."""


def runnable_targets(processor: Iterable[str]) -> list[Target]:
    """Levels that a processor with these flags can run, best first."""
    has = frozenset(processor)
    return [target for target in TARGETS if target.needs <= has]


def library_file(target: Target) -> Path:
    """Where the library of a level lies, built or not."""
    return PLACE / f"{target.name}-{_digest()}.so"


def sources() -> list[Path]:
    """The C++ files, in order of name."""
    return sorted(file for suffix in ("cpp", "h") for file in _ROOM.glob(f"*/*.{suffix}"))


@cache
def _digest() -> str:
    joined = b"".join(file.name.encode() + file.read_bytes() for file in sources())
    return hashlib.sha256(joined).hexdigest()[:12]
