"""Whether two answers say the same: numbers within a tolerance, pictures by their pixels, everything else exactly."""

import base64
import math
from typing import Any

import numpy as np
from pydantic import BaseModel

from fovea.errors import FoveaError
from shared.vision.decode import decode

VOLATILE = frozenset({"times", "timings", "id", "created", "request_id", "seconds", "elapsed", "latency_ms", "ms"})
"""Fields that tell of this call, not of the answer."""


def differences(first: Any, second: Any, tolerance: float = 1e-4) -> list[str]:
    """Paths at which two answers (or lists of events) differ; empty when they say the same."""
    return _compare("", _plain(first), _plain(second), tolerance)


def _plain(answer: Any) -> Any:
    if isinstance(answer, BaseModel):
        return answer.model_dump(mode="json")
    return [_plain(part) for part in answer] if isinstance(answer, list) else answer


def _compare(path: str, a: Any, b: Any, tolerance: float) -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{path}: {sorted(a)} != {sorted(b)}"]
        return [d for key in a if key not in VOLATILE for d in _compare(f"{path}.{key}", a[key], b[key], tolerance)]
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            return [f"{path}: {len(a)} != {len(b)} items"]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in _compare(f"{path}[{i}]", x, y, tolerance)]
    if isinstance(a, float) and isinstance(b, int | float):
        return [] if math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance) else [f"{path}: {a} != {b}"]
    is_same = a == b or (tolerance and _same_picture(a, b, round(tolerance * 255)))
    return [] if is_same else [f"{path}: {str(a)[:60]!r} != {str(b)[:60]!r}"]


def _same_picture(a: Any, b: Any, levels: int) -> bool:
    """Whether two base64 strings are pictures of which 0.1 % of pixels at most differ by more than so many levels."""
    try:
        first, second = (decode(base64.b64decode(text, validate=True)).pixels for text in (a, b))
    except (TypeError, ValueError, FoveaError):
        return False
    if first.shape != second.shape:
        return False
    return bool(np.mean((np.abs(first.astype(int) - second.astype(int)) > levels).any(axis=2)) <= 1e-3)
