"""What a method costs in quality, on a model that is being served: needles by length and depth, and fidelity to dense.

Everything runs through the model's scheduler, behind the requests of others. Knows prompts, tokens and scores; knows
nothing about HTTP or terminals.
"""

from __future__ import annotations

import math
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from services.llm_longctx.engine import CandidateSpec, GenerationRequest, Sampling, TokenCollector
from services.llm_longctx.engine.method_policy import Policy
from services.llm_longctx.engine.quality.fidelity import Fidelity, compare_to_dense
from services.llm_longctx.evaluation.text_corpus import library_prose
from services.llm_longctx.serving.adapters.decoder import DecoderAdapter
from services.llm_longctx.serving.method_selection import policy_for
from shared.api.text import LongctxOptions
from shared.errors import Cancelled, FoveaError, InvalidOption
from shared.lm.niah_prompts import NEEDLES, build_haystack, build_needle_prompt
from shared.registry import CallContext

__all__ = ["FidelityReport", "FidelitySpec", "NeedleReport", "NeedleSpec", "run_fidelity", "run_needle"]

LONGEST_TEXT = 4_000_000
"""Characters of a text of one's own."""

CHARACTERS = 8
"""Characters per token that are more than enough."""

_Asked = tuple[GenerationRequest, TokenCollector]
"""A prompt that was handed in, and its answer so far."""

POLL_S = 0.005
"""Seconds between two looks at whether an answer is there."""


class _Spec(BaseModel):
    """What both evaluations are asked."""

    model: str | None = Field(None, description="Name of the model; left out, the default one.")
    longctx: LongctxOptions = Field(default_factory=LongctxOptions, description="The method that is judged.")
    lengths: list[Annotated[int, Field(ge=16)]] = Field(
        [512, 1024, 2048], min_length=1, max_length=40, description="Tokens of the prompts."
    )
    text: str | None = Field(None, max_length=LONGEST_TEXT, description="Own text; left out, that of `corpus`.")
    corpus: Literal["library", "generated"] = Field(
        "library", description="`library`: English of Python's help topics; `generated`: simple sentences."
    )
    seed: int = Field(0, ge=0, description="Of the text's order, sentences and random tokens.")

    def long_text(self, tokens: int) -> str:
        """Text of so many tokens and more, as far as there is any."""
        if self.text is not None:
            return self.text
        return (library_prose if self.corpus == "library" else build_haystack)(tokens * CHARACTERS, self.seed)


class NeedleSpec(_Spec):
    """Where sentences are hidden."""

    depths: list[Annotated[float, Field(ge=0, le=100)]] = Field(
        [0, 50, 100], min_length=1, max_length=40, description="Percent of the context before the needle."
    )
    needles: int = Field(1, ge=1, le=len(NEEDLES), description="Sentences per cell.")
    steps: int = Field(40, ge=1, le=500, description="Most tokens of an answer.")


class NeedleReport(BaseModel):
    """Recall of the hidden sentence's words, mean over needles: `recall` [depth][length], 0 to 1."""

    model: str
    longctx: LongctxOptions
    lengths: list[int]
    depths: list[float]
    recall: list[list[float]]
    kv_ratio: list[float] = Field(description="Bytes held, as a share of dense, per length.")
    mean: float


class FidelitySpec(_Spec):
    """What is read, and how much is compared."""

    tasks: list[Literal["text", "copy"]] = Field(
        ["text", "copy"], min_length=1, description="`text`: goes on with prose; `copy`: random tokens come twice."
    )
    steps: int = Field(64, ge=1, le=2048, description="Tokens that are compared behind each prompt.")


class FidelityRow(BaseModel):
    """One prompt."""

    task: str
    length: int
    tokens: int
    kl: float = Field(description="KL(dense ‖ method), mean nats per token.")
    agreement: float = Field(description="Share of tokens on which both find the same one likeliest.")
    perplexity_dense: float
    perplexity: float
    right: float = Field(description="Share of the tokens that came which the method found likeliest.")


class FidelityReport(BaseModel):
    """All prompts."""

    model: str
    longctx: LongctxOptions
    rows: list[FidelityRow]


def run_needle(speaker: DecoderAdapter, spec: NeedleSpec, run: CallContext) -> NeedleReport:
    """Hide sentences and ask for them.

    Raises:
        InvalidOption: A length that the model can't read, or a method that can't serve.
        Cancelled: The caller went away.
    """
    _check(speaker, spec.lengths, spec.steps)
    # Deepest first: whatever comes before a needle was read already for the one behind it.
    depths = sorted(spec.depths, reverse=True)
    cells = [(d, n, what) for n in sorted(spec.lengths) for d in depths for what in NEEDLES[: spec.needles]]
    prompts = (
        build_needle_prompt(speaker.tokenizer, what, n, d, corpus=spec.long_text(n), seed=spec.seed).ids
        for d, n, what in cells
    )
    scores: dict[tuple[float, int], list[float]] = {}
    ratios: dict[int, float] = {}
    for at, ((depth, length, what), answer) in enumerate(
        zip(cells, _answers(speaker, prompts, spec, run), strict=True)
    ):
        request, output = answer
        said = speaker.tokenizer.decode(output.tokens, special=False)
        scores.setdefault((depth, length), []).append(_recall(what.answer, said))
        ratios[length] = request.stats.kv_ratio
        run.progress((at + 1) / len(cells), f"{length} tokens, depth {depth:g} %")
    recall = [[sum(scores[d, n]) / len(scores[d, n]) for n in spec.lengths] for d in spec.depths]
    mean = sum(map(sum, recall)) / (len(spec.lengths) * len(spec.depths))
    return NeedleReport(
        model=speaker.name,
        longctx=spec.longctx,
        lengths=spec.lengths,
        depths=spec.depths,
        recall=recall,
        kv_ratio=[ratios[n] for n in spec.lengths],
        mean=mean,
    )


def run_fidelity(speaker: DecoderAdapter, spec: FidelitySpec, run: CallContext) -> FidelityReport:
    """Compare a method with dense attention on prose and on copies.

    Raises:
        InvalidOption: A length that the model can't read, or a method that can't serve.
        Cancelled: The caller went away.
    """
    _check(speaker, spec.lengths, spec.steps)
    makers: dict[str, Callable[[int], tuple[list[int], list[int]]]] = {
        "text": lambda n: _prose(speaker, spec, n),
        "copy": lambda n: _copies(speaker, spec, n),
    }
    todo, rows = [(task, n) for task in spec.tasks for n in spec.lengths], []
    for at, (task, length) in enumerate(todo):
        ids, answer = makers[task](length)
        policy = policy_for(speaker.engine, spec.longctx, speaker.plans, len(ids), len(answer))
        rows.append(_row(task, len(ids), _compared(speaker, ids, answer, policy, run)))
        run.progress((at + 1) / len(todo), f"{task}, {length} tokens")
    return FidelityReport(model=speaker.name, longctx=spec.longctx, rows=rows)


def _check(speaker: DecoderAdapter, lengths: Sequence[int], steps: int) -> None:
    if max(lengths) + steps > speaker.context:
        detail = f"{max(lengths):,} tokens and an answer of {steps:,} exceed the context of {speaker.context:,} tokens."
        raise InvalidOption(detail, field="lengths")


def _answers(
    speaker: DecoderAdapter, prompts: Iterable[Sequence[int]], spec: NeedleSpec, run: CallContext
) -> Iterator[_Asked]:
    """Answers in order, behind the requests of others, and decoded together in half of the places that there are."""
    most = max(speaker.engine.max_batch // 2, 1)
    rest, asked = iter(prompts), deque[_Asked]()
    try:
        while True:
            asked.extend(
                _asked(speaker, ids[: speaker.context - spec.steps], spec) for ids in islice(rest, most - len(asked))
            )
            if not asked:
                return
            _wait_for(asked[0][1], run)
            yield asked.popleft()
    finally:
        for request, _ in asked:
            speaker.scheduler.abort(request)


def _asked(speaker: DecoderAdapter, ids: Sequence[int], spec: NeedleSpec) -> _Asked:
    """A prompt handed in. Its place in the queue is no progress of the whole, so it has no part in the caller's run."""
    engine = speaker.engine
    policy = policy_for(engine, spec.longctx, speaker.plans, len(ids), spec.steps)
    output = TokenCollector()
    request = GenerationRequest(
        ids,
        [CandidateSpec(Sampling(), output)],
        spec.steps,
        policy=policy,
        stop_token_ids=speaker.tokenizer.eos,
        priority=-1,
    )
    speaker.scheduler.add_request(request)
    return request, output


def _wait_for(output: TokenCollector, run: CallContext) -> None:
    """Wait until an answer is over.

    Raises:
        FoveaError: It failed.
    """
    while output.reason is None:
        run.check()
        time.sleep(POLL_S)
    if isinstance(output.reason, FoveaError):
        raise output.reason


def _compared(speaker: DecoderAdapter, ids: list[int], answer: list[int], policy: Policy, run: CallContext) -> Fidelity:
    """A comparison on the scheduler's thread, while nobody waits for an answer."""
    news: queue.SimpleQueue[Fidelity | None] = queue.SimpleQueue()
    left = threading.Event()

    def work() -> Generator[None, None, None]:
        try:
            yield  # begun before it is handed over: only what has begun hears that it is given up
            for piece in compare_to_dense(speaker.engine.runner, ids, answer, policy, news.put):
                if left.is_set():
                    return
                yield piece
        finally:
            news.put(None)

    next(begun := work())
    speaker.scheduler.run_when_idle(begun)
    try:
        while news.empty():
            run.check()
            time.sleep(POLL_S)
    finally:
        left.set()
    if (found := news.get()) is None:
        detail = "The comparison was given up: requests needed its memory, or it failed."
        raise Cancelled(detail, hint="Try again when the service is less busy.")
    return found


def _prose(speaker: DecoderAdapter, spec: FidelitySpec, length: int) -> tuple[list[int], list[int]]:
    """A stretch of text and how it goes on."""
    wanted = length + spec.steps
    ids = speaker.tokenizer.encode(spec.long_text(wanted), special=False)
    if len(ids) < wanted:
        detail = f"The text has {len(ids):,} tokens; {wanted:,} are needed."
        raise InvalidOption(detail, hint="Give a longer text or shorter lengths.", field="text")
    return ids[:length], ids[length:wanted]


def _copies(speaker: DecoderAdapter, spec: FidelitySpec, length: int) -> tuple[list[int], list[int]]:
    """Random tokens that begin to come a second time, and how they go on."""
    rng = random.Random(spec.seed)
    period = max(length - 8, 8)
    once = [rng.randrange(speaker.vocab) for _ in range(period)]
    twice = [*once, *once]
    steps = min(spec.steps, 2 * period - length) or 1
    return twice[:length], twice[length : length + steps]


def _row(task: str, length: int, found: Fidelity) -> FidelityRow:
    n = len(found.kl)
    return FidelityRow(
        task=task,
        length=length,
        tokens=n,
        kl=found.divergence,
        agreement=found.agreement,
        perplexity_dense=math.exp(min(-sum(found.dense) / n, 700.0)),
        perplexity=math.exp(min(-sum(found.method) / n, 700.0)),
        right=sum(found.right) / n,
    )


def _recall(wanted: str, said: str) -> float:
    """Share of the wanted words that were said, each as often as it was (ROUGE-1 recall)."""
    heard = said.lower().replace(".", " ").replace(",", " ").split()
    words = wanted.lower().split()
    return sum(min(words.count(w), heard.count(w)) for w in dict.fromkeys(words)) / len(words)
