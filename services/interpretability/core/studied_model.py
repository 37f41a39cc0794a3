"""The model under study: a decoder with its tokenizer, its digests and the name that requests use.

Knows text, tokens and sizes. Knows nothing about where models come from, and nothing about experiments.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from fovea.errors import InvalidOption, TooLarge
from services.interpretability.core.report import TokenSpan
from shared.lm.decoder import Decoder
from shared.lm.onednn_ops import is_packable, pack_ops
from shared.lm.ops import Ops
from shared.lm.tokenizer import Detokenizer, Tokenizer

_TIMED_TOKENS = 64
"""Tokens of the forward that measures the speed of this replica."""


@dataclass(frozen=True)
class StudiedModel:
    """A model under study. All calls share it, and none changes it.

    Attributes:
        name: Its name in requests.
        model: The decoder, in eval mode.
        tokenizer: Its tokenizer.
        weights_sha256: Digest of its safetensors; llm-longctx reports the same one for the same model.
        tokenizer_sha256: Digest of the tokenizer's file.
        licence: Licence of the weights.
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
        """Longest text, in tokens."""
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
        """Packed operations for long texts: a second copy of the matrices, made on first use."""
        return pack_ops(self.model)

    @property
    def rows_are_independent(self) -> bool:
        """Whether a token's result, attention apart, is bit-identical however many others are read with it."""
        return is_packable(self.model)

    @cached_property
    def seconds_per_token(self) -> float:
        """Seconds per token of a short forward, measured once: the base of all estimates."""
        ids = torch.zeros(1, min(_TIMED_TOKENS, self.window), dtype=torch.long, device=self.device)
        times = []
        with torch.no_grad():
            for _ in range(2):  # the first one pays for lazy set-up
                started = time.perf_counter()
                self.model(ids, keep=1)
                times.append(time.perf_counter() - started)
        return min(times) / ids.shape[1]

    def encode(self, text: str, field: str = "text", *, special: bool = True, most: int | None = None) -> list[int]:
        """Return the token ids of a text, which is never cut silently.

        Raises InvalidOption without a token, TooLarge for more than `most` tokens or than the window holds.
        """
        ids = self.tokenizer.encode(text, special=special)
        if not ids:
            raise InvalidOption(f"{field} holds no token.", field=field)
        self.check_window(len(ids), field)
        if most is not None and len(ids) > most:
            detail = f"{field} has {len(ids)} tokens; at most {most} are taken."
            raise TooLarge(detail, hint="Send the passage that matters.", field=field)
        return ids

    def check_window(self, tokens: int, field: str) -> None:
        """Refuse what does not fit into the model's window; `TooLarge` if `tokens` are more than the window."""
        if tokens > self.window:
            detail = f"{field} has {tokens} tokens; the window of {self.name} holds {self.window}."
            raise TooLarge(detail, hint="Shorten the text, or choose a model with a longer window.", field=field)

    def tensor(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Rows of equal length as ids [B,T] on the model's device."""
        return torch.tensor(rows, dtype=torch.long, device=self.device)

    def token_spans(self, ids: Sequence[int]) -> list[TokenSpan]:
        """Each id as text, with its span in the decoded text; a character belongs to the last of its pieces."""
        reader, texts = Detokenizer(self.tokenizer, special=True), map(self.tokenizer.token_text, ids)
        ends = [*accumulate(len(reader.feed(i)) for i in ids)]
        return [TokenSpan(text=t, start=start, end=end) for t, start, end in zip(texts, [0, *ends], ends, strict=False)]

    def complement(self, heads: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return all other heads, ascending: those that controls are drawn from."""
        chosen = set(heads)
        return [(l, h) for l in range(self.layers) for h in range(self.heads) if (l, h) not in chosen]

    def check_heads(self, heads: Sequence[Sequence[int]], field: str = "heads") -> list[tuple[int, int]]:
        """Return each head once, as (layer, head); `InvalidOption` if one is not a pair or not of this model."""
        for head in heads:
            if len(head) != 2 or not (0 <= head[0] < self.layers and 0 <= head[1] < self.heads):
                sizes = f"layers 0…{self.layers - 1} with heads 0…{self.heads - 1}"
                raise InvalidOption(f"There is no head {list(head)}; {self.name} has {sizes}.", field=field)
        return list(dict.fromkeys((int(l), int(h)) for l, h in heads))
