"""Session backend: models whose requests have a session each, fed one after the other.

A session is admitted when its largest size fits next to the others'. Knows sessions by their protocol; knows
no model and no text.
"""

from collections.abc import Collection

from torch import Tensor

from fovea_memory.request_session import RequestSession
from services.llm_longctx.engine.backend import SequenceBackend
from services.llm_longctx.engine.quality.background_tasks import BackgroundTasks
from services.llm_longctx.engine.requests.request import GenerationRequest
from services.llm_longctx.engine.sequence import Sequence

MAX_BYTES = 512 * 2**20
"""Default limit of all sessions in flight."""


class SessionBackend(SequenceBackend[RequestSession]):
    """Runs sequences through sessions of their own.

    Args:
        vocab: Size of the vocabulary.
        max_bytes: Limit of all sessions in flight.
        max_batch: Answers in flight.
    """

    def __init__(self, vocab: int, *, max_bytes: int = MAX_BYTES, max_batch: int = 16) -> None:
        self.vocab, self.max_bytes, self.max_batch = vocab, max_bytes, max_batch
        self.background_tasks = BackgroundTasks()

    def fits(self, sequence: Sequence[RequestSession], running: Collection[Sequence[RequestSession]]) -> bool:
        if not running:
            return True
        count = 1 + len(sequence.siblings)
        taken = sum(_max_bytes(s.request) for s in running)
        return len(running) + count <= self.max_batch and taken + _max_bytes(sequence.request) * count <= self.max_bytes

    def allocate(self, sequence: Sequence[RequestSession], parent: Sequence[RequestSession] | None = None) -> None:
        if parent is not None:
            sequence.state = parent.state.fork()
            return
        if sequence.request.source is None:
            raise TypeError("requests to this backend bring the source of their session")
        session: RequestSession = sequence.request.source.open()
        sequence.state = session
        sequence.num_computed = sequence.request.stats.cached_tokens = session.num_read

    def prefill_chunk(self, sequence: Sequence[RequestSession], limit: int) -> Tensor:
        session, begin = sequence.state, sequence.num_computed
        chunk = sequence.request.prompt_ids[begin : begin + session.max_chunk]
        logits = session.feed(chunk).float()
        sequence.num_computed = begin + len(chunk)
        return logits

    def decode_batch(self, batch: list[Sequence[RequestSession]]) -> list[Tensor | Exception]:
        return [_feed(s) for s in batch]

    def is_preemptible(self, sequence: Sequence[RequestSession]) -> bool:
        return False

    def complete(self, sequence: Sequence[RequestSession], running: Collection[Sequence[RequestSession]]) -> None:
        request, session = sequence.request, sequence.state
        if request.source is not None:
            sequence.context.run(request.source.on_finish, session, sequence.output_ids[-1:])
        request.stats.kv_bytes += session.nbytes
        request.stats.prefill_density = session.density
        request.stats.kv_bytes_dense += session.dense_nbytes


def _feed(sequence: Sequence[RequestSession]) -> Tensor | Exception:
    try:
        return sequence.state.feed([sequence.next_token])[-1].float()
    except Exception as error:  # noqa: BLE001  # whatever it is, the others go on
        return error


def _max_bytes(request: GenerationRequest) -> int:
    return request.source.max_bytes if request.source is not None else 0
