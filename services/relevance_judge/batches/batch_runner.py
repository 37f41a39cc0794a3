"""Batch runner: one judge labels many pairs into a label log. It can be killed at any moment and resumes where it was.

Each distinct (judge, templates, model, settings, query, passage) is judged once, whatever ids it goes under and however
often the batch is sent. A pair that an endpoint refuses fails alone and is tried again the next time.
"""

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Literal

from fovea.errors import Cancelled, DeadlineExceeded, FoveaError
from services.relevance_judge.batches.label_log import LabelLog
from services.relevance_judge.batches.pair_selection import BatchPair
from services.relevance_judge.judge import Judge
from services.relevance_judge.schemas import JudgeIn, Pair
from shared.registry import CallContext

StopReason = Literal["budget", "endpoint"]

MAX_CONSECUTIVE_FAILURES = 20
"""After so many the endpoint counts as unreachable, and the rest is left for the next time."""

POLL_S = 0.1


@dataclass(frozen=True)
class BatchPlan:
    """A planned batch: the judge, its options and the pairs.

    Attributes:
        settings: Digest of everything but the pairs; names the label log.
        keys: One digest per pair, in the order of `pairs`; pairs of the same texts share one.
        id: Digest of settings and pairs: the same request is the same batch.
    """

    judge: str
    options: dict[str, Any]
    templates: tuple[str, ...]
    llm: str | None
    pairs: tuple[BatchPair, ...]
    settings: str
    keys: tuple[str, ...]
    id: str


@dataclass(frozen=True)
class BatchLimits:
    """Rate, concurrency and budget of a batch. They may change when it is sent again; it stays the same batch.

    Attributes:
        max_tokens: No pair is started once the batch has spent so many, over all its attempts; running ones finish.
        per_minute: Most pairs started in a minute.
        max_concurrent: Most pairs running at a time.
    """

    max_tokens: int | None = None
    per_minute: float | None = None
    max_concurrent: int = 4


def plan_batch(judge: Judge, request: JudgeIn, pairs: Sequence[BatchPair], llm: str | None) -> BatchPlan:
    """Plan a batch, with every digest; `FoveaError` if the judge refuses the request's template or calibration."""
    options = request.model_dump(mode="json", exclude={"pairs", "query", "passages"})
    templates = judge.list_template_ids(request)
    facts = {"judge": judge.card.name, "options": options, "templates": templates, "llm": llm}
    settings = hash_text(json.dumps(facts, sort_keys=True))
    keys = tuple(hash_text(f"{len(pair.query)}\0{pair.query}\0{pair.passage}") for pair in pairs)
    name = hash_text("\n".join([settings, *(f"{p.qid}\0{p.docid}\0{key}" for p, key in zip(pairs, keys, strict=True))]))
    return BatchPlan(judge.card.name, options, templates, llm, tuple(pairs), settings, keys, name)


def hash_text(text: str) -> str:
    """sha256 of a text, 32 hex digits."""
    return hashlib.sha256(text.encode("utf8", "surrogatepass")).hexdigest()[:32]


def run_batch(
    plan: BatchPlan, judge: Judge, request: JudgeIn, log: LabelLog, limits: BatchLimits, run: CallContext
) -> StopReason | None:
    """Judge the pairs that have no verdict in the log; return why pairs are left, or None when all were judged.

    Each label is on disk before it counts. When the call is cancelled or its deadline passes, running pairs finish
    first, and their labels are stored; then Cancelled or DeadlineExceeded is raised.
    """
    distinct = dict(zip(plan.keys, plan.pairs, strict=True))
    todo = {key: pair for key, pair in distinct.items() if not log.has_verdict(key)}
    batch = _BatchRun(plan, judge, request, log, run, total=len(distinct), done=len(distinct) - len(todo))
    batch.report_progress()
    with ThreadPoolExecutor(limits.max_concurrent, thread_name_prefix="batch") as pool:
        running: set[Future[None]] = set()
        for key in _pace(todo, limits, run):
            while len(running) >= limits.max_concurrent:
                running = _wait_for_some(running, run)
            if (reason := batch.stop_reason(limits)) is not None:
                return reason
            running.add(pool.submit(batch.judge_pair, key, todo[key]))
        while running:
            running = _wait_for_some(running, run)
    return None


@dataclass
class _BatchRun:
    """One attempt at a batch."""

    plan: BatchPlan
    judge: Judge
    request: JudgeIn
    log: LabelLog
    run: CallContext
    total: int
    done: int
    failed: int = 0
    failures_in_a_row: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def judge_pair(self, key: str, pair: BatchPair) -> None:
        """Judge one pair and log its verdict or its failure."""
        facts = {"pair": key, "batch": self.plan.id, "at": time.time()}
        try:
            found = self.judge.judge_pair(Pair(query=pair.query, passage=pair.passage), self.request, self.run)
        except (Cancelled, DeadlineExceeded):
            return  # the loop in `run_batch` raises it for all
        except FoveaError as error:
            self.log.append({**facts, "error": {"code": error.code, "detail": error.detail}})
            with self.lock:
                self.failures_in_a_row += 1
                self.failed += 1
        else:
            self.log.append({**facts, "tokens": found.tokens, "verdict": found.model_dump(mode="json")})
            with self.lock:
                self.failures_in_a_row = 0
                self.done += 1
        self.report_progress()

    def stop_reason(self, limits: BatchLimits) -> StopReason | None:
        """Why no more pairs should be started."""
        if self.failures_in_a_row >= MAX_CONSECUTIVE_FAILURES:
            return "endpoint"
        if limits.max_tokens is not None and self.log.count_tokens(self.plan.id) >= limits.max_tokens:
            return "budget"
        return None

    def report_progress(self) -> None:
        failed = f", {self.failed} failed" if self.failed else ""
        self.run.progress(self.done / max(self.total, 1), f"{self.done} of {self.total} pairs{failed}")


def _pace(keys: dict[str, BatchPair], limits: BatchLimits, run: CallContext) -> Iterator[str]:
    """Yield the keys, no faster than the limits allow."""
    due = time.monotonic()
    for key in keys:
        while (left := due - time.monotonic()) > 0:
            run.check()
            time.sleep(min(left, POLL_S))
        run.check()
        yield key
        due = max(due, time.monotonic() - POLL_S) + (60.0 / limits.per_minute if limits.per_minute else 0.0)


def _wait_for_some(running: set[Future[None]], run: CallContext) -> set[Future[None]]:
    """Wait until some are done; unexpected errors are raised."""
    done, rest = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
    for task in done:
        task.result()
    run.check()
    return rest
