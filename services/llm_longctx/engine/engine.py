"""The engine: one thread that steps through all requests, batching their decoding.

Each step reads at most one chunk of one prompt and feeds one token to every running sequence, so a long prompt delays
nobody by more than a chunk. First come, first served; what does not fit waits. Knows nothing about text or HTTP.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections import deque

import torch
from torch import Tensor

from services.llm_longctx.engine.ragged import decode
from services.llm_longctx.engine.request import Request
from services.llm_longctx.engine.sampler import scored
from services.llm_longctx.engine.sequence import Prefill, Sequence
from shared import telemetry
from shared.errors import Cancelled, Fault, FoveaError, NotReady, QueueFull
from shared.lm.decoder import Decoder

__all__ = ["Engine"]


class Engine:
    """Serves one decoder, dense attention over one cache per sequence."""

    def __init__(
        self,
        model: Decoder,
        *,
        max_batch: int = 8,
        max_waiting: int = 64,
        prefill_tokens: int = 512,
        kv_bytes: int = 2 * 2**30,
        threads: int = 0,
    ) -> None:
        """Take a model into service; `start` begins to step.

        Args:
            model: The decoder, in eval mode.
            max_batch: Sequences that decode at a time.
            max_waiting: Requests that may wait for one of those places.
            prefill_tokens: Prompt tokens read per step.
            kv_bytes: Bytes of keys and values that may be spoken for; one request alone is always admitted.
            threads: Intra-op threads of torch on the engine's thread; 0 leaves the library's default.
        """
        self.model = model
        self.max_batch = max_batch
        self._limits = (max_waiting, prefill_tokens, kv_bytes)
        self._threads = threads
        self._waiting: deque[Prefill] = deque()
        self._reading: Prefill | None = None
        self._running: list[Sequence] = []
        self._news = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Accept a request; its sinks are called from now on.

        Raises:
            QueueFull: As many requests wait as may.
            NotReady: The engine is closed.
        """
        with self._news:
            if self._closed:
                detail = "The model was taken out of service."
                raise NotReady(detail)
            if len(self._waiting) >= self._limits[0]:
                detail = f"{len(self._waiting)} requests wait for this model, and no more may."
                raise QueueFull(detail, hint="Try again shortly.", retry_after=1)
            self._waiting.append(Prefill(request, contextvars.copy_context(), time.perf_counter()))
            self._news.notify()

    def close(self) -> None:
        """Stop; what is still in flight ends as cancelled."""
        with self._news:
            self._closed = True
            self._news.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._fail(Cancelled("The model was taken out of service."))

    @property
    def in_flight(self) -> int:
        """Requests and answers that are not over."""
        return len(self._waiting) + (self._reading is not None) + len(self._running)

    @torch.inference_mode()
    def step(self) -> None:
        """Drop what was cancelled, decode one token everywhere, read one chunk of one prompt."""
        self._drop()
        if self._running:
            self._decode()
        if self._reading is None:
            self._admit()
        if self._reading is not None:
            self._read(self._reading)

    # One step, in order.

    def _drop(self) -> None:
        with self._news:
            waiting = list(self._waiting)
        gone = [p for p in waiting if _over(p)]
        with self._news:
            self._waiting = deque(p for p in self._waiting if p not in gone)
        if self._reading is not None and _over(self._reading):
            self._reading = None
        self._running = [s for s in self._running if not _over(s)]

    def _decode(self) -> None:
        logits = decode(self.model, [s.cache for s in self._running], [s.fed for s in self._running])
        self._advance(self._running, logits.float().cpu())

    def _admit(self) -> None:
        with self._news:
            if self._waiting and self._fits(self._waiting[0].request):
                self._reading = self._waiting.popleft()
        if (begun := self._reading) is not None:
            begun.context.run(telemetry.observe_stage, "queue", time.perf_counter() - begun.since)
            begun.since = time.perf_counter()
            request = begun.request
            begun.cache = self.model.new_cache(room=len(request.ids) + min(request.max_tokens, 128))

    def _fits(self, request: Request) -> bool:
        places = len(self._running) + len(request.choices) <= self.max_batch
        spoken_for = sum(self._footprint(s.request) for s in self._running) + self._footprint(request) * len(
            request.choices
        )
        return not self._running or (places and spoken_for <= self._limits[2])

    def _footprint(self, request: Request) -> int:
        c = self.model.config
        tokens = len(request.ids) + request.max_tokens
        return tokens * c.layers * 2 * c.kv_heads * c.head_dim * self.model.output_matrix.element_size()

    def _read(self, prefill: Prefill) -> None:
        request, cache = prefill.request, prefill.cache
        assert cache is not None  # noqa: S101  # set on admission
        begin, end = cache.length, min(cache.length + self._limits[1], len(request.ids))
        chunk = torch.tensor([request.ids[begin:end]], device=self.model.output_matrix.device)
        whole = end == len(request.ids)
        keep = None if request.score_prompt else int(whole)
        logits = self.model(chunk, cache=cache, keep=keep)[0].float().cpu()
        if request.score_prompt:
            known = list(request.ids[begin + 1 : end + 1])
            tokens = scored(logits[: len(known)], known, request.top or 0)
            for choice in request.choices:
                choice.sink.prompt(tokens)
        if whole:
            self._reading = None
            self._answer(prefill, logits[-1])

    def _answer(self, prefill: Prefill, logits: Tensor) -> None:
        """The prompt is read: its answers begin, each with a cache of its own."""
        now, vocab = time.perf_counter(), self.model.config.vocab
        prefill.context.run(telemetry.observe_stage, "pre", now - prefill.since)
        assert prefill.cache is not None  # noqa: S101  # set on admission
        caches = [prefill.cache, *(prefill.cache.fork() for _ in prefill.request.choices[1:])]
        begun = [
            Sequence(prefill, choice, cache, vocab, now)
            for choice, cache in zip(prefill.request.choices, caches, strict=True)
        ]
        self._running += begun
        self._advance(begun, logits.expand(len(begun), -1))

    def _advance(self, sequences: list[Sequence], logits: Tensor) -> None:
        over = [s for s, row in zip(sequences, logits, strict=True) if _advanced(s, row)]
        for sequence in over:
            sequence.context.run(telemetry.observe_stage, "run", time.perf_counter() - sequence.since)
        self._running = [s for s in self._running if s not in over]

    # The thread.

    def _serve(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)
        while True:
            with self._news:
                self._news.wait_for(lambda: self._closed or self.in_flight)
                if self._closed:
                    return
            try:
                self.step()
            except Exception as error:  # noqa: BLE001  # whatever a step hits, the next request must be served
                self._fail(_fault(error))

    def _fail(self, error: FoveaError) -> None:
        with self._news:
            waiting, self._waiting = list(self._waiting), deque()
        reading, self._reading = self._reading, None
        running, self._running = self._running, []
        for one in (*waiting, *([reading] if reading else ()), *running):
            one.end(error)


def _advanced(sequence: Sequence, logits: Tensor) -> bool:
    """Whether an answer is over now; one that fails, fails alone."""
    try:
        return sequence.advance(logits)
    except Exception as error:  # noqa: BLE001  # whatever it is, its neighbours go on
        return sequence.end(_fault(error))


def _fault(error: Exception) -> Fault:
    """What a caller may know of a failure of ours; the rest goes to the log."""
    telemetry.log().error("engine failed", exc_info=error)
    detail = "The model failed on this request."
    return Fault(detail, hint="The log of the service says why.")


def _over(one: Prefill | Sequence) -> bool:
    """Whether it was cancelled or is too late; then its sink has been told."""
    try:
        one.request.check()
    except FoveaError as error:
        one.end(error)
        return True
    return False
