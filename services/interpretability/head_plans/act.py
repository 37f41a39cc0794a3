"""ACT head search: which heads, calibrated alone, make a model answer more questions right.

"Unveiling and Harnessing Hidden Attention Sinks" (2024). The questions have four answers to choose from and are pure
functions of a seed. Heads without sinks are left out first; each of the others is tried alone, starting at the residual
stream of its layer. Knows the decoder's attention seam; knows no experiment and nothing about serving.
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fovea.errors import InvalidOption
from services.interpretability.attention.pattern_capture import run_blocks
from services.interpretability.attention.retrieval_score import Head
from shared.lm.attention import DenseAttention, causal_mask, patterns, scores
from shared.lm.attention_math import calibrate, column_mean, excuse_sink
from shared.lm.decoder import Decoder
from shared.lm.host_transfer import take_rows, to_device
from shared.lm.niah_prompts import Codec
from shared.lm.taps import trace

_NAMES = """
Ada Ben Cleo Dan Eva Finn Gina Hugo Ida Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Vera Will Zoe
"""
_THINGS = """
apple ball clock drum egg flag glove hat ink jar kite lamp map nail orange pen ring stone tent umbrella violin watch
"""
OPTIONS = 4


@dataclass(frozen=True, slots=True)
class Question:
    """Multiple-choice question: a prompt and four tokens of which one is the right answer.

    Attributes:
        ids: The prompt.
        options: Next tokens to choose from.
        right: Which of them is right.
    """

    ids: list[int]
    options: list[int]
    right: int


@dataclass(frozen=True, slots=True)
class SinkCalibration:
    """ACT's options, as llm-longctx serves them."""

    beta: float = 0.4
    threshold: float = 0.1
    relative_threshold: float | None = None
    excuse: str = "first"
    min_rows: int = 0

    def sinks(self, pattern: Tensor) -> Tensor:
        """Return the columns of one head's causal map [T,T] that lose mass, ascending, without the excused one."""
        T = pattern.shape[-1]
        means = column_mean(pattern.double())
        threshold = self.threshold if self.relative_threshold is None else self.relative_threshold / T
        enough = T - torch.arange(T, device=means.device) >= self.min_rows
        return excuse_sink(((means > threshold) & enough).nonzero()[:, 0], self.excuse)


def make_questions(codec: Codec, count: int, *, facts: int = 10, seed: int = 0) -> list[Question]:
    """Make questions: `facts` lines of who has what, then the start of one of them; `InvalidOption` for too many."""
    for lead in (" ", ""):  # tokens of words begin with a space; bytes do not
        tokens: dict[int, str] = {}
        for thing in _THINGS.split():
            tokens.setdefault(codec.encode(lead + thing, special=False)[0], thing)
        if len(tokens) >= max(facts, OPTIONS):
            first = {thing: token for token, thing in tokens.items()}
            return [_question(codec, first, lead, facts, random.Random(f"{seed}/{i}")) for i in range(count)]
    detail = f"Only {len(tokens)} things begin with a token of their own, too few for {facts} facts."
    raise InvalidOption(detail, hint="Ask for fewer facts.", field="facts")


def _question(codec: Codec, first: dict[str, int], lead: str, facts: int, rng: random.Random) -> Question:
    names, owned = rng.sample(_NAMES.split(), facts), rng.sample(list(first), facts)
    lines = "".join(f"{name}: {thing}\n" for name, thing in zip(names, owned, strict=True))
    target = rng.randrange(facts)
    wrong = rng.sample([thing for thing in owned if thing != owned[target]], OPTIONS - 1)
    options = [owned[target], *wrong]
    rng.shuffle(options)
    ids = codec.encode(f"{lines}{names[target]}:" + ("" if lead else " "))
    return Question(ids, [first[o] for o in options], options.index(owned[target]))


class _CalibratedAttention(DenseAttention):
    """The decoder's `attend` on one text: row i of the batch has the sinks of the heads `heads[i]` calibrated."""

    def __init__(self, model: Decoder, rule: SinkCalibration, heads: Sequence[Collection[Head]]) -> None:
        super().__init__(windows=model.config.windows)
        self._rule, self._heads = rule, heads

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, offset: int) -> Tensor:
        keys, values = self.remember(layer, k, v, offset)
        z, group = super().__call__(layer, q, k, v, offset).clone(), q.shape[2] // keys.shape[1]
        calibrated = [(row, head) for row, heads in enumerate(self._heads) for l, head in heads if l == layer]
        mask = causal_mask(torch.arange(q.shape[1], device=q.device), q.shape[1], None)
        for row, head in calibrated:
            seen = scores(q[row : row + 1, :, head : head + 1], keys[row : row + 1, head // group, None], mask)
            pattern = patterns(seen)[0, 0]
            if len(sinks := self._rule.sinks(pattern)):
                z[row, :, head] = calibrate(pattern, sinks, self._rule.beta) @ values[row, head // group]
        return z


def count_sinks(model: Decoder, question: Question, rule: SinkCalibration) -> list[list[int]]:
    """Count the sinks that each head would calibrate on one question: [L][H], none under a window; one forward."""
    L, windows = model.config.layers, model.config.windows
    names = [f"pattern.{l}" for l in range(L) if windows is None or windows[l] is None]
    run = trace(model, _prompt(model, question), capture=names, keep=1)
    counts = {name: [len(rule.sinks(pattern)) for pattern in run[name][0]] for name in names}
    return [counts.get(f"pattern.{l}", [0] * model.config.heads) for l in range(L)]


@torch.no_grad()
def try_heads_alone(model: Decoder, question: Question, rule: SinkCalibration, heads: Sequence[Head]) -> list[bool]:
    """Return whether the answer is right without calibration, then with each of `heads` calibrated alone.

    Takes one forward, and a partial one per head: variants start at the layer of their head.
    """
    layers = sorted({layer for layer, _ in heads})
    traced = trace(model, _prompt(model, question), capture=[f"resid_pre.{l}" for l in layers], keep=1)
    verdict = {None: _is_right(traced.logits[:, -1], question)[0]} | dict.fromkeys(heads, False)
    for layer in layers:
        here = [head for head in heads if head[0] == layer]
        x = traced[f"resid_pre.{layer}"].expand(len(here), -1, -1)
        attend = _CalibratedAttention(model, rule, [[head] for head in here])
        verdict |= zip(here, _is_right(run_blocks(model, layer, x, attend), question), strict=True)
    return list(verdict.values())


@torch.no_grad()
def try_heads_together(model: Decoder, question: Question, rule: SinkCalibration, heads: Collection[Head]) -> bool:
    """Return whether the answer is right with all of `heads` calibrated together, as when served; one forward."""
    logits = model(_prompt(model, question), attend=_CalibratedAttention(model, rule, [heads]), keep=1)
    return _is_right(logits[:, -1], question)[0]


def _prompt(model: Decoder, question: Question) -> Tensor:
    return to_device(question.ids, model.output_matrix.device)[None]


def _is_right(last: Tensor, question: Question) -> list[bool]:
    """Per row of logits [N,V], whether the right option is the likeliest; a tie is not right."""
    options = take_rows(last, question.options, 1)
    others = options.clone()
    others[:, question.right] = -torch.inf
    return (options[:, question.right] > others.amax(-1)).tolist()
