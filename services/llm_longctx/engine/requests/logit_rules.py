"""Logit rules: the bias and the penalties of one answer, which remember what prompt and answer hold.

Knows logits and tokens; knows nothing about draws or grammars.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from services.llm_longctx.engine.requests.sampling import Sampling
from shared.lm.host_transfer import to_device


class LogitRules:
    """Rules that change logits before a draw. Their memory moves to where the logits lie with the first.

    Attributes:
        is_empty: Whether they change nothing.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocab: int) -> None:
        self._sampling = sampling
        self._bias: Tensor | None = None
        self._seen: Tensor | None = None
        self._produced: Tensor | None = None
        if sampling.logit_bias:
            values = torch.tensor(list(sampling.logit_bias.values()), device="cpu")
            self._bias = torch.zeros(vocab, device="cpu")
            self._bias[list(sampling.logit_bias)] = values
        if sampling.repetition_penalty != 1:
            self._seen = torch.zeros(vocab, dtype=torch.bool, device="cpu")
            self._seen[torch.tensor(list(prompt), dtype=torch.long, device="cpu")] = True
        if sampling.presence_penalty or sampling.frequency_penalty:
            self._produced = torch.zeros(vocab, device="cpu")
        self.is_empty = self._bias is None and self._seen is None and self._produced is None

    def apply(self, logits: Tensor) -> Tensor:
        """Logits [V] after bias and penalties."""
        sampling, device = self._sampling, logits.device
        if self._bias is not None:
            self._bias = to_device(self._bias, device)
            logits = logits + self._bias
        if self._seen is not None:
            self._seen, penalty = to_device(self._seen, device), sampling.repetition_penalty
            logits = torch.where(self._seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
        if self._produced is not None:
            self._produced = used = to_device(self._produced, device)
            logits = logits - sampling.frequency_penalty * used - sampling.presence_penalty * (used > 0)
        return logits

    def note(self, token: int) -> None:
        """Remember a token of the answer."""
        if self._produced is not None:
            self._produced[token] += 1
        if self._seen is not None:
            self._seen[token] = True
