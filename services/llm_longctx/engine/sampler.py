"""Sampler: draws the next token of one answer from its logits.

Each answer has a generator of its own, so that its draws do not depend on its neighbours. Knows nothing about models.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from services.llm_longctx.engine.device.step_draws import Choice, DrawnRow, read_choices
from services.llm_longctx.engine.requests.logit_rules import LogitRules
from services.llm_longctx.engine.requests.sampling import Grammar, Sampling, ScoredToken
from services.llm_longctx.kernels import GREEDY_BELOW, RowSettings, SamplingRows, sample
from shared.lm.host_transfer import to_device


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
        self._rules = LogitRules(sampling, prompt, vocab)
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

        With `top`, log-probabilities of so many of the likeliest, and of the choice, are read, too.
        """
        drawn, logits = (row, row.logits) if isinstance(row, DrawnRow) else (None, row)
        mask, self._top = None if self._grammar is None else self._grammar.mask(), top
        if drawn is not None and mask is None and self._rules.is_empty:
            if top is None:
                return drawn.choice
            tokens, begin, _ = drawn.choice
            chosen = tokens[begin : begin + 1].long()
        else:
            adjusted = self._rules.apply(logits.float())
            if mask is not None:
                adjusted = adjusted.masked_fill(~to_device(mask, logits.device), -torch.inf)
            if drawn is None:
                chosen = sample(adjusted[None], SamplingRows.of([self.settings()]))
            else:
                chosen = sample(adjusted[None], drawn.settings, backend=drawn.backend)
        words = chosen.double()
        if top is not None:
            words = torch.cat((words, read_logprobs(logits[None].float(), chosen, top)[0]))
        return Choice(words, 0, len(words))

    def accept(self, words: Sequence[float]) -> ScoredToken:
        """Take what `choose` found, once it was read, and remember the choice."""
        chosen, self._share = int(words[0]), None
        if not self._rules.is_empty:
            self._rules.note(chosen)
        if self._grammar is not None:
            self._grammar.advance(chosen)
        return ScoredToken(chosen) if self._top is None else ScoredToken.of(chosen, words[1:])

    def draw(self, logits: Tensor, top: int | None = None) -> ScoredToken:
        """Choose, and read the choice at once."""
        return self.accept(read_choices([self.choose(logits, top)])[0])

    @property
    def is_finished(self) -> bool:
        """Whether the grammar lets nothing follow."""
        return self._grammar is not None and self._grammar.is_finished


def read_logprobs(logits: Tensor, chosen: Tensor, top: int) -> Tensor:
    """Log-probabilities of tokens [T] and of the likeliest, then the ids of these: [T, 1 + 2·top] float64."""
    logs = logits.log_softmax(-1)
    values, ids = logs.topk(min(top, logs.shape[1]))
    return torch.cat((logs.gather(1, chosen[:, None]).double(), values.double(), ids.double()), 1)
