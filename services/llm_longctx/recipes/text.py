"""Bytes of text that ships with Python: library sources and the help topics, split by file.

Freely licensed, on every machine, fetched from nowhere. The digest is over the bytes that are used, so it says which
Python's text it was. Knows files; knows no model.
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

__all__ = ["Corpus", "Split", "corpus", "library_text"]

Split = Literal["train", "valid", "test"]

_SHARES: dict[Split, tuple[float, float]] = {"test": (0.0, 0.05), "valid": (0.05, 0.1), "train": (0.1, 1.0)}
"""Shares of the bytes, over the files in the order of their names' hashes."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """One split as one row of bytes, files joined by a zero byte."""

    data: np.ndarray
    digest: str

    def draw(self, rng: np.random.Generator, batch: int, length: int) -> Tensor:
        """Random windows [B,length] of token ids 0…255."""
        starts = rng.integers(0, len(self.data) - length, batch)
        return torch.from_numpy(self.data[starts[:, None] + np.arange(length)].astype(np.int64))

    def windows(self, count: int, length: int) -> Tensor:
        """`count` windows spread evenly [count,length]: the same every time."""
        starts = np.linspace(0, len(self.data) - length, count).astype(np.int64)
        return torch.from_numpy(self.data[starts[:, None] + np.arange(length)].astype(np.int64))


def library_text() -> list[Path]:
    """The files, in the order of their names: top-level modules, and the topics of `help()`."""
    root = Path(sysconfig.get_path("stdlib"))
    return sorted([*root.glob("*.py"), *root.glob("pydoc_data/topics.py"), *root.glob("email/*.py")])


def corpus(split: Split, files: list[Path] | None = None) -> Corpus:
    """A split of the library's text; a file belongs to one split as a whole, by where its middle lies."""
    paths = sorted(library_text() if files is None else files, key=_order)
    whole, at = sum(path.stat().st_size for path in paths), 0
    low, high = _SHARES[split]
    chosen = []
    for path in paths:
        size = path.stat().st_size
        if low <= (at + size / 2) / whole < high:
            chosen.append(path.read_bytes())
        at += size
    joined = b"\0".join(chosen)
    return Corpus(np.frombuffer(joined, np.uint8), hashlib.sha256(joined).hexdigest())


def _order(path: Path) -> bytes:
    return hashlib.sha256(f"{path.parent.name}/{path.name}".encode()).digest()
