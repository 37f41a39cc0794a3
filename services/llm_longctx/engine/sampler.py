"""Sampler: draws the next token of one answer from its logits.

Each answer has a generator of its own, so that its draws do not depend on its neighbours. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from services.llm_longctx.engine.device.step_draws import Choice, DrawnRow
from services.llm_longctx.engine.requests.sampling import Grammar, Sampling, ScoredToken
from services.llm_longctx.kernels import GREEDY_BELOW, RowSettings, SamplingRows, sample
from shared.lm.host_transfer import to_device, to_host


class Sampler:
    """The draws of one answer. Its choice is made where the logits lie, and read together with those of others."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocab: int, grammar: Grammar | None = None) -> None:
        self._sampling = sampling
        self._grammar = grammar
        self._generator = torch.Generator(device="cpu")
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed % 2**63)
        self._counts = bool(sampling.presence_penalty or sampling.frequency_penalty)
        self._marks = sampling.repetition_penalty != 1
        self._produced = torch.zeros(vocab if self._counts else 0, device="cpu")
        self._seen = torch.zeros(vocab if self._marks else 0, dtype=torch.bool, device="cpu")
        if self._marks:
            self._seen[torch.tensor(list(prompt), dtype=torch.long, device="cpu")] = True
        self._bias = self._bias_of(sampling, vocab)
        self._top: int | None = None
        self._share: float | None = None

    def settings(self) -> RowSettings:
        """Sampling settings of the next token; the same until one is accepted."""
        sampling = self._sampling
        if sampling.temperature < GREEDY_BELOW:
            return RowSettings()
        if self._share is None:
            self._share = float(torch.rand((), dtype=torch.float64, device="cpu", generator=self._generator))
        return RowSettings(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, self._share)

    def choose(self, row: Tensor | DrawnRow, top: int | None = None) -> Choice:
        """Choose from logits [V], by the token drawn from them where nothing changes them: for `accept`, once read.

        Args:
            row: Logits, float32 unless a token was drawn from them.
            top: Log-probabilities of so many of the likeliest, and of the choice, are read, too; None leaves both out.
        """
        drawn = row if isinstance(row, DrawnRow) else None
        logits = row.logits if isinstance(row, DrawnRow) else row
        mask, self._top = None if self._grammar is None else self._grammar.mask(), top
        is_plain = mask is None and self._bias is None and not self._marks and not self._counts
        if drawn is not None and is_plain:
            if top is None:
                return drawn.choice
            tokens, begin, _ = drawn.choice
            chosen = tokens[begin : begin + 1].long()
        else:
            chosen = self._draw(logits.float(), mask, drawn)
        words = chosen.double()
        if top is not None:
            words = torch.cat((words, _logprobs(logits[None].float(), chosen, top)[0]))
        return Choice(words, 0, len(words))

    def _draw(self, logits: Tensor, mask: Tensor | None, drawn: DrawnRow | None) -> Tensor:
        """A token [1] from logits after bias, penalties and grammar."""
        self._move(logits.device)
        adjusted = self._adjust(logits)
        if mask is not None:
            adjusted = adjusted.masked_fill(~to_device(mask, logits.device), -torch.inf)
        if drawn is None:
            return sample(adjusted[None], SamplingRows.of([self.settings()]))
        return sample(adjusted[None], drawn.settings, backend=drawn.backend)

    def accept(self, words: Sequence[float]) -> ScoredToken:
        """Take what `choose` found, once it was read, and remember the choice for the penalties."""
        chosen, self._share = int(words[0]), None
        if self._counts:
            self._produced[chosen] += 1
        if self._marks:
            self._seen[chosen] = True
        if self._grammar is not None:
            self._grammar.advance(chosen)
        return ScoredToken(chosen) if self._top is None else _to_scored(chosen, words[1:])

    def draw(self, logits: Tensor, top: int | None = None) -> ScoredToken:
        """Choose, and read the choice at once."""
        return self.accept(read_choices([self.choose(logits, top)])[0])

    @property
    def is_finished(self) -> bool:
        """Whether the grammar lets nothing follow."""
        return self._grammar is not None and self._grammar.is_finished

    def _adjust(self, logits: Tensor) -> Tensor:
        """Logits after bias and penalties."""
        sampling = self._sampling
        if self._bias is not None:
            logits = logits + self._bias
        if self._marks:
            divided = torch.where(
                logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty
            )
            logits = torch.where(self._seen, divided, logits)
        if self._counts:
            used = self._produced
            logits = logits - sampling.frequency_penalty * used - sampling.presence_penalty * (used > 0)
        return logits

    def _move(self, device: torch.device) -> None:
        """Bring what it remembers to where the logits lie, with the first draw."""
        self._produced, self._seen = to_device(self._produced, device), to_device(self._seen, device)
        self._bias = None if self._bias is None else to_device(self._bias, device)

    @staticmethod
    def _bias_of(sampling: Sampling, vocab: int) -> Tensor | None:
        if not sampling.logit_bias:
            return None
        bias = torch.zeros(vocab, device="cpu")
        bias[list(sampling.logit_bias)] = torch.tensor(list(sampling.logit_bias.values()), device="cpu")
        return bias


def read_choices(choices: Sequence[Choice]) -> list[list[float]]:
    """Read what several samplers chose, all of it at once."""
    if not choices:
        return []
    parts = {id(one.words): one.words for one in choices}
    offsets, end = {}, 0
    for key, words in parts.items():
        offsets[key], end = end, end + len(words)
    read = to_host(torch.cat(list(parts.values())) if len(parts) > 1 else choices[0].words).tolist()
    begins = [offsets[id(one.words)] + one.begin for one in choices]
    return [read[begin : begin + one.size] for begin, one in zip(begins, choices, strict=True)]


def token_logprobs(logits: Tensor, chosen: Sequence[int], top: int) -> list[ScoredToken]:
    """Tokens `chosen` [T] with their log-probabilities and the `top` likeliest, from logits [T,V]."""
    rows = to_host(_logprobs(logits, to_device(list(chosen), logits.device, torch.int64), top)).tolist()
    return [_to_scored(token, words) for token, words in zip(chosen, rows, strict=True)]


def _logprobs(logits: Tensor, chosen: Tensor, top: int) -> Tensor:
    """Log-probabilities of tokens [T] and of the likeliest, then the ids of these: [T, 1 + 2·top] float64."""
    logs = logits.log_softmax(-1)
    values, ids = logs.topk(min(top, logs.shape[1]))
    return torch.cat((logs.gather(1, chosen[:, None]).double(), values.double(), ids.double()), 1)


def _to_scored(token: int, words: Sequence[float]) -> ScoredToken:
    half = len(words) // 2
    ids = [int(i) for i in words[1 + half :]]
    return ScoredToken(token, words[0], tuple(zip(ids, words[1 : 1 + half], strict=True)))
