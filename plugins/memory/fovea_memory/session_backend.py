"""Session backend: models whose requests have a session each, fed one after the other.

A session is admitted when the most that it may come to fits beside the others'. Knows sessions by their protocol; knows
no model and no text.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from fovea_memory.request_session import RequestSession
from services.llm_longctx.engine.backend import BackgroundTasks
from services.llm_longctx.engine.sequence import GenerationRequest, Sequence

MAX_BYTES = 512 * 2**20
"""What all sessions in flight may come to, unless told otherwise."""


class SessionBackend:
    """Runs sequences through sessions of their own; see `SequenceBackend`.

    Args:
        vocab: Size of the vocabulary.
        max_bytes: What all sessions in flight may come to.
        max_batch: Answers in flight.
    """

    def __init__(self, vocab: int, *, max_bytes: int = MAX_BYTES, max_batch: int = 16) -> None:
        self.vocab, self.max_bytes, self.max_batch = vocab, max_bytes, max_batch
        self.background_tasks = BackgroundTasks()

    def fits(self, sequence: Sequence[RequestSession], running: Collection[Sequence[RequestSession]]) -> bool:
        """Whether there are places, and bytes for the most that they may come to."""
        if not running:
            return True
        count = 1 + len(sequence.siblings)
        taken = sum(_max_bytes(s.request) for s in running)
        return len(running) + count <= self.max_batch and taken + _max_bytes(sequence.request) * count <= self.max_bytes

    def allocate(self, sequence: Sequence[RequestSession], parent: Sequence[RequestSession] | None = None) -> None:
        """The session that the request's source opens, or a fork of its parent's."""
        if parent is not None:
            sequence.state = parent.state.fork()
            return
        if sequence.request.source is None:
            message = "requests to this backend bring the source of their session"
            raise TypeError(message)
        session: RequestSession = sequence.request.source.open()
        sequence.state = session
        sequence.num_computed = sequence.request.stats.cached_tokens = session.num_read

    def prefill_chunk(self, sequence: Sequence[RequestSession], _limit: int) -> Tensor:
        """Up to the next border of the session's own grid, which is about as much as is allowed at a time."""
        session, begin = sequence.state, sequence.num_computed
        chunk = sequence.request.prompt_ids[begin : begin + session.max_chunk]
        logits = session.feed(chunk).float()
        sequence.num_computed = begin + len(chunk)
        return logits

    def can_append(self, _running: Collection[Sequence[RequestSession]]) -> bool:
        """Always: the bytes were foreseen on admission."""
        return True

    def decode_batch(self, batch: list[Sequence[RequestSession]]) -> list[Tensor | Exception]:
        """One after the other; a session that can't go on fails alone."""
        return [_feed(s) for s in batch]

    def is_preemptible(self, _sequence: Sequence[RequestSession]) -> bool:
        """Never: nothing would be gained."""
        return False

    def complete(self, sequence: Sequence[RequestSession], _running: Collection[Sequence[RequestSession]]) -> None:
        """Hand the session to its source, and record what it remembers."""
        request, session = sequence.request, sequence.state
        if request.source is not None:
            sequence.context.run(request.source.on_finish, session, sequence.output_ids[-1:])
        request.stats.kv_bytes += session.nbytes
        request.stats.prefill_density = session.density
        request.stats.kv_bytes_dense += session.dense_nbytes

    def release(self, sequence: Sequence[RequestSession]) -> None:
        """Close its session."""
        sequence.free()

    def reclaim(self) -> None:
        """Nothing is cached here."""


def _feed(sequence: Sequence[RequestSession]) -> Tensor | Exception:
    try:
        return sequence.state.feed([sequence.next_token])[-1].float()
    except Exception as error:  # noqa: BLE001  # whatever it is, the others go on
        return error


def _max_bytes(request: GenerationRequest) -> int:
    return request.source.max_bytes if request.source is not None else 0
