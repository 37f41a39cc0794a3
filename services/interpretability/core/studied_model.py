"""The subject of an experiment: a decoder with its tokenizer, its digests and what it is known by.

Knows text, tokens and sizes. Knows nothing about where subjects come from, and nothing about experiments.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from services.interpretability.core.report import Token
from shared.errors import InvalidOption, TooLarge
from shared.lm.decoder import Decoder
from shared.lm.onednn_ops import fits, pack_ops
from shared.lm.ops import Ops
from shared.lm.tokenizer import Tokenizer

__all__ = ["Subject"]

_TIMED = 64
"""Tokens of the forward that measures the speed of this replica."""


@dataclass(frozen=True)
class Subject:
    """A model under study. It is shared by all calls and never changed by one.

    Attributes:
        name: What requests call it.
        model: The decoder, in eval mode.
        tokenizer: Its tokenizer.
        weights_sha256: Digest of its safetensors, as llm-longctx tells it for the same model.
        tokenizer_sha256: Digest of the tokenizer's file.
        licence: Of the weights.
    """

    name: str
    model: Decoder = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    weights_sha256: str
    tokenizer_sha256: str
    licence: str = "unknown"

    @property
    def layers(self) -> int:
        """L."""
        return self.model.config.layers

    @property
    def heads(self) -> int:
        """H: query heads per layer."""
        return self.model.config.heads

    @property
    def window(self) -> int:
        """Most tokens of one text."""
        return self.model.config.positions

    @property
    def dtype(self) -> str:
        """Compute type, as text."""
        return str(self.model.output_matrix.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        """Where the weights are."""
        return str(self.model.output_matrix.device)

    @cached_property
    def ops(self) -> Ops:
        """What reads long texts: matrices laid out for it when first asked for, a second copy of them."""
        return pack_ops(self.model)

    @property
    def rows_stand_alone(self) -> bool:
        """Whether no bit of a token's result depends on how many others are read with it, attention apart."""
        return fits(self.model)

    @cached_property
    def seconds_per_token(self) -> float:
        """Measured once, on a short forward: what estimates rest on."""
        ids = torch.zeros(1, min(_TIMED, self.window), dtype=torch.long, device=self.device)
        times = []
        with torch.no_grad():
            for _ in range(2):  # the first one pays for lazy set-up
                begun = time.perf_counter()
                self.model(ids, keep=1)
                times.append(time.perf_counter() - begun)
        return min(times) / ids.shape[1]

    def encode(self, text: str, field: str = "text", *, special: bool = True) -> list[int]:
        """Ids of a text.

        Raises:
            InvalidOption: There is no token in it.
            TooLarge: It is longer than the model's window; nothing is ever cut silently.
        """
        ids = self.tokenizer.encode(text, special=special)
        if not ids:
            detail = f"{field} holds no token."
            raise InvalidOption(detail, field=field)
        self.refuse_above_window(len(ids), field)
        return ids

    def refuse_above_window(self, tokens: int, field: str) -> None:
        """Refuse what the model's window can't hold.

        Raises:
            TooLarge: `tokens` are more than the window.
        """
        if tokens > self.window:
            detail = f"{field} has {tokens} tokens; the window of {self.name} holds {self.window}."
            raise TooLarge(detail, hint="Shorten the text, or choose a model with a longer window.", field=field)

    def tensor(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Rows of equal length as ids [B,T] on the model's device."""
        return torch.tensor(rows, dtype=torch.long, device=self.device)

    def tokens(self, ids: Sequence[int]) -> list[Token]:
        """Each id as text, with its place in the decoded text in characters; pieces of a character share its place."""
        found, place, pending = [], 0, b""
        for i in ids:
            raw = pending + self.tokenizer.token_bytes(i)
            try:
                text, pending = raw.decode(), b""
            except UnicodeDecodeError:
                text, pending = "", raw if len(raw) < 4 else b""
            shown = self.tokenizer.token_text(i)
            found.append(Token(text=shown, start=place, end=place + len(text)))
            place += len(text)
        return found

    def refuse_heads(self, heads: Sequence[Sequence[int]], field: str = "heads") -> list[tuple[int, int]]:
        """Heads as (layer, head), checked.

        Raises:
            InvalidOption: One is not a pair, or does not exist in this model.
        """
        for one in heads:
            if len(one) != 2 or not (0 <= one[0] < self.layers and 0 <= one[1] < self.heads):
                sizes = f"layers 0…{self.layers - 1} with heads 0…{self.heads - 1}"
                detail = f"There is no head {list(one)}; {self.name} has {sizes}."
                raise InvalidOption(detail, field=field)
        return [(int(l), int(h)) for l, h in heads]
