"""Request taps: the edits and captures of one request, checked, with what a cached prefix depends on.

Knows sites and tokens; knows nothing about how they are applied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from functools import cached_property
from math import prod

import numpy as np
import torch
from torch import Tensor

from services.llm_longctx.engine.taps.token_range import TokenRange
from shared.lm.activation_names import parse_site
from shared.lm.config import DecoderConfig
from shared.lm.interventions import Add, Attend, Replace, Scale, Uniform


@dataclass(frozen=True, slots=True, eq=False)
class PlacedEdit:
    """An edit and the tokens that it changes.

    Attributes:
        edit: Without positions of its own; of an `Attend` the weights are one per key. The value of a `Replace` is one
            row [1,1,…] for all tokens, or one per listed token [1,n,…].
        tokens: Which tokens.
    """

    edit: Add | Replace | Scale | Uniform | Attend
    tokens: TokenRange


@dataclass(frozen=True, slots=True)
class ActivationCapture:
    """A named activation of some tokens; `keep` if it is to be stored however small it is."""

    site: str
    tokens: TokenRange
    keep: bool = False

    def count(self, _position: int, config: DecoderConfig) -> int:
        """Numbers that one token brings: the product of the site's axes behind batch and token."""
        axes = parse_site(self.site, config).axes
        sizes = {"H": config.heads, "G": config.kv_heads, "d": config.head_dim, "D": config.width}
        return prod(sizes[axis] for axis in axes.removeprefix("BT"))


@dataclass(frozen=True, slots=True)
class AttentionCapture:
    """Attention rows of some tokens."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    tokens: TokenRange

    def count(self, position: int, _config: DecoderConfig) -> int:
        """Numbers that the token at a position brings."""
        return len(self.layers) * len(self.heads) * (position + 1)


@dataclass(frozen=True, slots=True)
class LensCapture:
    """The likeliest next tokens in the eyes of some layers."""

    layers: tuple[int, ...]
    top: int
    tokens: TokenRange

    def count(self, _position: int, _config: DecoderConfig) -> int:
        """Numbers that one token brings: ids and log-probabilities."""
        return len(self.layers) * self.top * 2


Capture = ActivationCapture | AttentionCapture | LensCapture


@dataclass(frozen=True, slots=True)
class CaptureSize:
    """The most that captures may come to: of one prompt and its answers, or of several together.

    Attributes:
        numbers: Numbers that are kept.
        prompt_rows: Residual streams of the prompt that the lens reads.
        rows: Rows of prompt and answers.
        step_rows: Rows of one decode step.
    """

    numbers: int = 0
    prompt_rows: int = 0
    rows: int = 0
    step_rows: int = 0

    def __add__(self, other: CaptureSize) -> CaptureSize:
        """Both together."""
        return CaptureSize(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, eq=False)
class RequestTaps:
    """Edits and captures of one request.

    Attributes:
        edits: In the order in which they act.
        captures: In the order of the request.
        size: Largest size of the captures of all its answers.
    """

    edits: tuple[PlacedEdit, ...] = ()
    captures: tuple[Capture, ...] = ()
    size: CaptureSize = CaptureSize()

    @property
    def first_captured(self) -> int:
        """The first token that is read: a cached prefix may reach up to it."""
        return min((capture.tokens.begin for capture in self.captures), default=TokenRange().end)

    @cached_property
    def _digests(self) -> list[tuple[int, bytes]]:
        return [(one.tokens.begin, b"\1".join(_spell(one))) for one in self.edits]

    def digest(self, prompt: int) -> str:
        """Edits that keys and values of a prompt's first tokens depend on; empty without any."""
        touching = [spelled for begin, spelled in self._digests if begin < prompt]
        return hashlib.sha256(b"\0".join(touching)).hexdigest() if touching else ""


def _spell(placed: PlacedEdit) -> Iterator[bytes]:
    yield type(placed.edit).__name__.encode()
    for field in fields(placed.edit):
        value: object = getattr(placed.edit, field.name)
        yield _to_bytes(value) if isinstance(value, Tensor) else repr(value).encode()
    yield repr(placed.tokens).encode()


def _to_bytes(tensor: Tensor) -> bytes:
    return repr(tuple(tensor.shape)).encode() + np.ascontiguousarray(tensor.to(torch.float32).numpy()).tobytes()
