"""Quality of an attention method on a served model: needle recall by length and depth, and fidelity to dense attention.

Everything runs through the model's scheduler, behind other requests. Knows prompts, tokens and scores; knows nothing
about HTTP or terminals.
"""

import math
import random
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from fovea.api.longctx import LongctxOptions
from fovea.errors import Cancelled, FoveaError, InvalidOption
from fovea_lab.idle_run import POLL_S, run_when_idle
from fovea_lab.needles import NeedleCell, map_recall
from fovea_lab.text_corpus import load_library_prose
from services.interpretability.attention.retrieval_score import rouge1_recall
from services.llm_longctx.engine import GenerationRequest, TokenCollector
from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.engine.quality.fidelity import Fidelity, compare_to_dense
from services.llm_longctx.kv_cache import PoolExhausted
from services.llm_longctx.serving.adapters.decoder import DecoderAdapter
from services.llm_longctx.serving.method_selection import select_policy
from shared.lm.niah_prompts import NEEDLES, build_haystack
from shared.registry import CallContext

MAX_TEXT_CHARS = 4_000_000
"""Most characters of the caller's own text."""

CHARS_PER_TOKEN = 8
"""More characters than a token has on average."""

_Pending = tuple[GenerationRequest, TokenCollector]
"""A submitted request, and its answer so far."""


class _Spec(BaseModel):
    """Options of both evaluations."""

    model: str | None = Field(None, description="Name of the model; left out, the default one.")
    longctx: LongctxOptions = Field(default_factory=LongctxOptions, description="The method that is evaluated.")
    lengths: list[Annotated[int, Field(ge=16)]] = Field(
        [512, 1024, 2048], min_length=1, max_length=40, description="Tokens of the prompts."
    )
    text: str | None = Field(None, max_length=MAX_TEXT_CHARS, description="Own text; left out, that of `corpus`.")
    corpus: Literal["library", "generated"] = Field(
        "library", description="`library`: English of Python's help topics; `generated`: simple sentences."
    )
    seed: int = Field(0, ge=0, description="Of the text's order, sentences and random tokens.")

    def long_text(self, tokens: int) -> str:
        """Text of at least so many tokens, or all there is."""
        if self.text is not None:
            return self.text
        return (load_library_prose if self.corpus == "library" else build_haystack)(tokens * CHARS_PER_TOKEN, self.seed)


class NeedleRequest(_Spec):
    """Options of the needle evaluation."""

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


class FidelityRequest(_Spec):
    """Options of the fidelity evaluation."""

    tasks: list[Literal["text", "copy"]] = Field(
        ["text", "copy"], min_length=1, description="`text`: goes on with prose; `copy`: random tokens come twice."
    )
    steps: int = Field(64, ge=1, le=2048, description="Tokens that are compared behind each prompt.")


class FidelityRow(BaseModel):
    """Fidelity on one prompt."""

    task: str
    length: int
    tokens: int
    kl: float = Field(description="KL(dense ‖ method), mean nats per token.")
    agreement: float = Field(description="Share of tokens on which both find the same one likeliest.")
    perplexity_dense: float
    perplexity: float
    right: float = Field(description="Share of the tokens that came which the method found likeliest.")


class FidelityReport(BaseModel):
    """Fidelity on all prompts."""

    model: str
    longctx: LongctxOptions
    rows: list[FidelityRow]


def run_needle(adapter: DecoderAdapter, spec: NeedleRequest, run: CallContext) -> NeedleReport:
    """Hide sentences in prompts and measure how much of them the model recalls.

    Raises:
        InvalidOption: A length that the model can't read, or a method that can't serve.
        Cancelled: The caller went away.
    """
    _check_lengths(adapter, spec.lengths, spec.steps)
    # Deepest first: whatever comes before a needle was read already for the one behind it.
    depths = sorted(spec.depths, reverse=True)
    cells = [NeedleCell(i, n, d) for n in sorted(spec.lengths) for d in depths for i in range(spec.needles)]
    prompts = (c.build_prompt(adapter.tokenizer, NEEDLES, spec.long_text(c.length), spec.seed).ids for c in cells)
    recalls, ratios = list[tuple[NeedleCell, float]](), dict[int, float]()
    for cell, (request, output) in zip(cells, _stream_answers(adapter, prompts, spec, run), strict=True):
        text = adapter.tokenizer.decode(output.tokens, special=False)
        recalls.append((cell, rouge1_recall(NEEDLES[cell.needle].answer, text)))
        ratios[cell.length] = request.stats.kv_ratio
        run.progress(len(recalls) / len(cells), f"{cell.length} tokens, depth {cell.depth:g} %")
    recall = [[value or 0.0 for value in row] for row in map_recall(spec.lengths, spec.depths, recalls).values]
    mean = sum(map(sum, recall)) / (len(spec.lengths) * len(spec.depths))
    return NeedleReport(
        model=adapter.name,
        longctx=spec.longctx,
        lengths=spec.lengths,
        depths=spec.depths,
        recall=recall,
        kv_ratio=[ratios[n] for n in spec.lengths],
        mean=mean,
    )


def run_fidelity(adapter: DecoderAdapter, spec: FidelityRequest, run: CallContext) -> FidelityReport:
    """Compare a method with dense attention on prose and on copies.

    Raises:
        InvalidOption: A length that the model can't read, or a method that can't serve.
        Cancelled: The caller went away.
    """
    _check_lengths(adapter, spec.lengths, spec.steps)
    makers: dict[str, Callable[[int], tuple[list[int], list[int]]]] = {
        "text": lambda n: _sample_prose(adapter, spec, n),
        "copy": lambda n: _sample_copies(adapter, spec, n),
    }
    todo, rows = [(task, n) for task in spec.tasks for n in spec.lengths], []
    for at, (task, length) in enumerate(todo):
        ids, answer = makers[task](length)
        policy = select_policy(adapter.engine, spec.longctx, adapter.plans, len(ids), len(answer))
        rows.append(_to_row(task, len(ids), _compare(adapter, ids, answer, policy, run)))
        run.progress((at + 1) / len(todo), f"{task}, {length} tokens")
    return FidelityReport(model=adapter.name, longctx=spec.longctx, rows=rows)


def _check_lengths(adapter: DecoderAdapter, lengths: Sequence[int], steps: int) -> None:
    if max(lengths) + steps > adapter.context:
        detail = f"{max(lengths):,} tokens and an answer of {steps:,} exceed the context of {adapter.context:,} tokens."
        raise InvalidOption(detail, field="lengths")


def _stream_answers(
    adapter: DecoderAdapter, prompts: Iterable[Sequence[int]], spec: NeedleRequest, run: CallContext
) -> Iterator[_Pending]:
    """Answers in order, behind other requests, decoded together in at most half of the batch."""
    most = max(adapter.engine.max_batch // 2, 1)
    rest, pending = iter(prompts), deque[_Pending]()
    try:
        while True:
            pending.extend(
                _submit(adapter, ids[: adapter.context - spec.steps], spec) for ids in islice(rest, most - len(pending))
            )
            if not pending:
                return
            _wait_for(pending[0][1], run)
            yield pending.popleft()
    finally:
        for request, _ in pending:
            adapter.scheduler.abort(request)


def _submit(adapter: DecoderAdapter, ids: Sequence[int], spec: NeedleRequest) -> _Pending:
    """Submit a prompt. It has a context of its own: its place in the queue is not progress of the whole evaluation."""
    engine = adapter.engine
    policy = select_policy(engine, spec.longctx, adapter.plans, len(ids), spec.steps)
    output = TokenCollector()
    request = GenerationRequest(
        ids, max_tokens=spec.steps, policy=policy, stop_token_ids=adapter.tokenizer.eos, priority=-1, hooks=output
    )
    adapter.scheduler.add_request(request)
    return request, output


def _wait_for(output: TokenCollector, run: CallContext) -> None:
    """Wait until an answer is over, and raise its error if it failed."""
    while output.reason is None:
        run.check()
        time.sleep(POLL_S)
    if isinstance(output.reason, FoveaError):
        raise output.reason


def _compare(adapter: DecoderAdapter, ids: list[int], answer: list[int], policy: Policy, run: CallContext) -> Fidelity:
    """Compare on the scheduler's thread, while no request waits; cached prefixes give way to it."""

    def work() -> Generator[None, None, Fidelity]:
        found: list[Fidelity] = []
        compared = partial(compare_to_dense, adapter.engine.runner, ids, answer, policy, found.append)
        try:
            yield from compared()
        except PoolExhausted:
            adapter.engine.prefix_cache.clear()
            yield from compared()
        return found[0]

    try:
        return run_when_idle(adapter.scheduler, work(), run)
    except PoolExhausted as error:
        detail = f"The comparison was given up: {error}."
        raise Cancelled(detail, hint="Try again when the service is less busy.") from error


def _sample_prose(adapter: DecoderAdapter, spec: FidelityRequest, length: int) -> tuple[list[int], list[int]]:
    """Tokens of prose, and the tokens that follow them."""
    needed = length + spec.steps
    ids = adapter.tokenizer.encode(spec.long_text(needed), special=False)
    if len(ids) < needed:
        detail = f"The text has {len(ids):,} tokens; {needed:,} are needed."
        raise InvalidOption(detail, hint="Give a longer text or shorter lengths.", field="text")
    return ids[:length], ids[length:needed]


def _sample_copies(adapter: DecoderAdapter, spec: FidelityRequest, length: int) -> tuple[list[int], list[int]]:
    """Random tokens whose second copy has begun, and the tokens that follow."""
    rng = random.Random(spec.seed)
    period = max(length - 8, 9)  # of the shortest prompt two tokens are left
    once = [rng.randrange(adapter.vocab) for _ in range(period)]
    twice = [*once, *once]
    steps = min(spec.steps, 2 * period - length)
    return twice[:length], twice[length : length + steps]


def _to_row(task: str, length: int, found: Fidelity) -> FidelityRow:
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
