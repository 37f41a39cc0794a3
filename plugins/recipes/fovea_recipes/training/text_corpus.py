"""Bytes of text that ships with Python: library sources and the help topics, split by file.

Freely licensed, on every machine, fetched from nowhere. The digest is over the bytes that are used, so it says which
Python's text it was. Knows files; knows no model.
"""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Split = Literal["train", "valid", "test"]

_HELD_OUT = 0.05
"""Share of the bytes that test and validation text have at least, in whole files."""


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
    """A split of the library's text, in the order of hashed names: first test, then validation, then training."""
    paths = sorted(library_text() if files is None else files, key=_order)
    least = _HELD_OUT * sum(path.stat().st_size for path in paths)
    parts: dict[Split, list[bytes]] = {"test": [], "valid": [], "train": []}
    for path in paths:
        held_out: tuple[Split, ...] = ("test", "valid")
        lacking = (name for name in held_out if sum(map(len, parts[name])) < least)
        parts[next(lacking, "train")].append(path.read_bytes())
    joined = b"\0".join(parts[split])
    return Corpus(np.frombuffer(joined, np.uint8), hashlib.sha256(joined).hexdigest())


def corpus_of(text: bytes, split: Split) -> Corpus:
    """A split of one text: its last twentieth is for tests, the one before it for validation."""
    cuts = {"train": (0.0, 0.9), "valid": (0.9, 0.95), "test": (0.95, 1.0)}[split]
    part = text[int(cuts[0] * len(text)) : int(cuts[1] * len(text))]
    return Corpus(np.frombuffer(part, np.uint8), hashlib.sha256(part).hexdigest())


def _order(path: Path) -> bytes:
    return hashlib.sha256(f"{path.parent.name}/{path.name}".encode()).digest()
