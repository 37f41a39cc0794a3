"""A batch: many pairs, one judge, labels in a journal. It can be killed at any moment and goes on where it was.

Each distinct (judge, templates, model, settings, query, passage) is asked for once, whatever ids it goes under and
however often the batch is sent. What an endpoint refuses fails that pair alone and is asked for again the next time.
Knows how to carry out a plan; what was planned and where the journal lies, it is told.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Literal

from services.relevance_judge.batches.label_log import Journal
from services.relevance_judge.batches.pair_selection import Asked
from services.relevance_judge.judge import Judge
from services.relevance_judge.schemas import JudgeIn, Pair
from shared.errors import Cancelled, DeadlineExceeded, FoveaError
from shared.registry import CallContext

__all__ = ["Bounds", "Plan", "Stopped", "carry_out", "digest", "planned"]

Stopped = Literal["budget", "endpoint"]

FAILURES_IN_A_ROW = 20
"""After so many the endpoint counts as gone, and the rest is left for the next time."""

NAP_S = 0.1


@dataclass(frozen=True)
class Plan:
    """What a batch is: who judges, how, and which pairs.

    Attributes:
        settings: Digest of everything but the pairs; names the journal.
        keys: One digest per pair, in the order of `pairs`; pairs of the same texts share one.
        id: Digest of settings and pairs: the same request is the same batch.
    """

    judge: str
    options: dict[str, Any]
    templates: tuple[str, ...]
    llm: str | None
    pairs: tuple[Asked, ...]
    settings: str
    keys: tuple[str, ...]
    id: str


@dataclass(frozen=True)
class Bounds:
    """How fast and how far: they may change when a batch is sent again, and it stays the same batch.

    Attributes:
        tokens: The batch stops asking once it has spent so many, over all its attempts; what is under way ends.
        per_minute: Pairs begun in a minute at most.
        at_once: Pairs under way at most.
    """

    tokens: int | None = None
    per_minute: float | None = None
    at_once: int = 4


def planned(judge: Judge, request: JudgeIn, pairs: Sequence[Asked], llm: str | None) -> Plan:
    """The plan of a batch, with every digest.

    Raises:
        FoveaError: The judge refuses the request's template or calibration.
    """
    options = request.model_dump(mode="json", exclude={"pairs", "query", "passages"})
    templates = judge.names_of(request)
    facts = {"judge": judge.card.name, "options": options, "templates": templates, "llm": llm}
    settings = digest(json.dumps(facts, sort_keys=True))
    keys = tuple(digest(f"{len(pair.query)}\0{pair.query}\0{pair.passage}") for pair in pairs)
    name = digest("\n".join([settings, *(f"{p.qid}\0{p.docid}\0{key}" for p, key in zip(pairs, keys, strict=True))]))
    return Plan(judge.card.name, options, templates, llm, tuple(pairs), settings, keys, name)


def digest(text: str) -> str:
    """sha256 of a text, 32 hex digits."""
    return hashlib.sha256(text.encode("utf8", "surrogatepass")).hexdigest()[:32]


def carry_out(
    plan: Plan, judge: Judge, request: JudgeIn, journal: Journal, bounds: Bounds, run: CallContext
) -> Stopped | None:
    """Judge what the journal lacks.

    Args:
        plan: The batch.
        judge: Who judges.
        request: The judge's options.
        journal: Where labels are and go, each on disk before it counts.
        bounds: How fast and how far.
        run: Its progress is told and its cancellation heeded; pairs under way end first, and their labels are kept.

    Returns:
        Why pairs are left, or None when all were asked.

    Raises:
        Cancelled: Somebody cancelled.
        DeadlineExceeded: The deadline passed.
    """
    distinct = dict(zip(plan.keys, plan.pairs, strict=True))
    texts = {key: pair for key, pair in distinct.items() if not journal.judged(key)}
    work = _Work(plan, judge, request, journal, run, total=len(distinct), done=len(distinct) - len(texts))
    work.told()
    with ThreadPoolExecutor(bounds.at_once, thread_name_prefix="batch") as pool:
        under_way: set[Future[None]] = set()
        for key in _paced(texts, bounds, run):
            while len(under_way) >= bounds.at_once:
                under_way = _rest(under_way, run)
            if (stopped := work.stopped(bounds)) is not None:
                return stopped
            under_way.add(pool.submit(work.one, key, texts[key]))
        while under_way:
            under_way = _rest(under_way, run)
    return None


@dataclass
class _Work:
    """One attempt at a batch."""

    plan: Plan
    judge: Judge
    request: JudgeIn
    journal: Journal
    run: CallContext
    total: int
    done: int
    failed: int = 0
    failures_in_a_row: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def one(self, key: str, asked: Asked) -> None:
        """Judge one pair and write down what came of it."""
        facts = {"pair": key, "batch": self.plan.id, "at": time.time()}
        try:
            found = self.judge.judged(Pair(query=asked.query, passage=asked.passage), self.request, self.run)
        except (Cancelled, DeadlineExceeded):
            return  # the loop below says so for all
        except FoveaError as error:
            self.journal.add({**facts, "error": {"code": error.code, "detail": error.detail}})
            with self.lock:
                self.failures_in_a_row += 1
                self.failed += 1
        else:
            self.journal.add({**facts, "tokens": found.tokens, "verdict": found.model_dump(mode="json")})
            with self.lock:
                self.failures_in_a_row = 0
                self.done += 1
        self.told()

    def stopped(self, bounds: Bounds) -> Stopped | None:
        """Why no more pairs should be begun."""
        if self.failures_in_a_row >= FAILURES_IN_A_ROW:
            return "endpoint"
        if bounds.tokens is not None and self.journal.spent(self.plan.id) >= bounds.tokens:
            return "budget"
        return None

    def told(self) -> None:
        """Report progress."""
        failed = f", {self.failed} failed" if self.failed else ""
        self.run.progress(self.done / max(self.total, 1), f"{self.done} of {self.total} pairs{failed}")


def _paced(keys: dict[str, Asked], bounds: Bounds, run: CallContext) -> Iterator[str]:
    """The keys, no faster than the bounds allow."""
    due = time.monotonic()
    for key in keys:
        while (left := due - time.monotonic()) > 0:
            run.check()
            time.sleep(min(left, NAP_S))
        run.check()
        yield key
        due = max(due, time.monotonic() - NAP_S) + (60.0 / bounds.per_minute if bounds.per_minute else 0.0)


def _rest(under_way: set[Future[None]], run: CallContext) -> set[Future[None]]:
    """Wait until some are done; what broke in a way that is no error of ours is raised."""
    done, rest = wait(under_way, timeout=NAP_S, return_when=FIRST_COMPLETED)
    for task in done:
        task.result()
    run.check()
    return rest
