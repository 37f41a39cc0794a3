"""Landmark adapter: prompts read through their top blocks, documents read once, and answers that cite their blocks.

Knows sessions, blocks, the document cache and offsets in texts; knows nothing about where documents are stored.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from torch import Tensor

from fovea.api.longctx import Citation, CitedToken, LongctxAnswer
from fovea.api.text import GenerationOptions
from fovea.errors import InvalidOption
from fovea_memory import metrics
from fovea_memory.adapters.landmark_options import LandmarkOptions, merge_options
from fovea_memory.adapters.landmark_session import Checkpointer, LandmarkRequestSession, dense_token_bytes
from fovea_memory.adapters.session import SessionAdapter
from fovea_memory.mixers.landmark import LandmarkSession, RetrievedBlock, citations
from fovea_memory.mixers.landmark.serialization import pack_blocks, unpack_blocks
from fovea_memory.request_state import StoredDocument
from fovea_memory.state.document_cache import DocumentCache, last_checkpoint
from fovea_memory.toy_tokenizers import OffsetTokenizer
from services.llm_longctx.engine import GenerationRequest
from services.llm_longctx.serving.adapters.base import RequestState

MAX_CITATIONS = 8


@dataclass(frozen=True, eq=False)
class _LandmarkSource:
    """Opens the session of one request, and keeps each answer's at its end; see `SessionSource`.

    Attributes:
        ids: Tokens of document and prompt.
        options: How they are read.
        offsets: Finds blocks in the texts.
        document: The document before the prompt, if there is one.
        max_bytes: Most bytes of a session.
        is_counted: Whether metrics count what it fetched.
        is_scored: Whether the prompt's log-probabilities are wanted, for which all of it is read.
        finished: Sessions of the answers that ended well.
    """

    adapter: LandmarkAdapter
    ids: Sequence[int]
    options: LandmarkOptions
    offsets: _BlockOffsets
    document: StoredDocument | None
    max_bytes: int
    is_counted: bool = True
    is_scored: bool = False
    finished: list[LandmarkRequestSession] = field(default_factory=list)

    def open(self) -> LandmarkRequestSession:
        """A session behind the cached prefix of the document."""
        return self.adapter.open_session(self.ids, self.options, self.document, is_scored=self.is_scored)

    def on_finish(self, session: LandmarkRequestSession, last: Sequence[int]) -> None:
        """Keep the session with its votes: in front that of the first answer, the others are its forks."""
        session.answer_ids += last
        self.finished.insert(len(self.finished) if session.is_fork else 0, session)
        if self.is_counted:
            metrics.RETRIEVED_BLOCKS.labels(self.adapter.name).inc(session.num_retrieved)
            metrics.MOVED_BYTES.labels(self.adapter.name).inc(session.moved_bytes)


@dataclass(frozen=True)
class LandmarkAdapter(SessionAdapter):
    """Adapter of a landmark network.

    Attributes:
        cache: Checkpoints of documents.
    """

    cache: DocumentCache = field(default_factory=DocumentCache)

    def prepare(
        self,
        ids: Sequence[int],
        max_tokens: int | None,
        options: GenerationOptions,
        field: str,
        text: str | None,
        state: RequestState | None,
    ) -> GenerationRequest:
        """A request behind its document, if it names one.

        Raises:
            InvalidOption: An unknown knob, a landmark in the prompt, or a document that can't be read like this.
            ContextLengthExceeded: Document and prompt together are too long.
        """
        if self.net.landmark_id in ids:
            detail = "The prompt holds a landmark, which would close an empty or broken block."
            raise InvalidOption(detail, hint="Leave landmarks out: they are inserted where they belong.", field=field)
        document = state if isinstance(state, StoredDocument) else None
        knobs = merge_options(options, document.options if document else None)
        whole = [*document.ids, *ids] if document else list(ids)
        self.check_length(whole, field)
        offsets = _BlockOffsets(self.tokenizer, document, text, len(ids))
        limit = self.limit_tokens(whole, max_tokens)
        most, is_scored = self.max_bytes(len(whole) + limit), options.prompt_logprobs is not None
        source = _LandmarkSource(self, whole, knobs, offsets, document, most, is_scored=is_scored)
        return self.build_session_request(whole, limit, options, source)

    def build_prefill_request(self, document: StoredDocument) -> GenerationRequest:
        """A request that only reads a document."""
        ids, offsets = document.ids, _BlockOffsets(self.tokenizer, document, document.text, 0)
        source = _LandmarkSource(
            self, ids, document.options, offsets, document, self.max_bytes(len(ids)), is_counted=False
        )
        return GenerationRequest(ids, max_tokens=0, source=source)

    async def extra_payload(self, request: GenerationRequest) -> LongctxAnswer | None:
        source = request.source
        if not isinstance(source, _LandmarkSource):
            return None
        return await asyncio.to_thread(self._describe, source)

    def open_session(
        self, ids: Sequence[int], options: LandmarkOptions, document: StoredDocument | None, *, is_scored: bool = False
    ) -> LandmarkRequestSession:
        """Open a session behind the longest cached prefix of the document, or before it. On the scheduler's thread."""
        muted = [self.net.landmark_id]
        if document is None:
            return LandmarkRequestSession(self.new_session(options), 0, len(ids), muted)
        base_key, most = self.base_key(document), 0 if is_scored else min(len(document.ids), len(ids) - 1)
        if (found := self.cache.find_longest(base_key, document.ids, most)) is None:
            session, num_read = self.new_session(options), 0
        else:
            session, num_read = found[0].fork(options.blocks, options.selection), found[1]
        is_read_alike = document.options == options.model_copy(update={"cite": document.options.cite})
        checkpointer = Checkpointer(self.cache, base_key, document) if is_read_alike else None
        return LandmarkRequestSession(session, num_read, len(ids), muted, checkpointer)

    def new_session(self, options: LandmarkOptions) -> LandmarkSession:
        """An empty session with these options."""
        session: LandmarkSession = self.net.session(
            1, blocks=options.blocks, selection=options.selection, offload=options.offload, capacity=options.capacity
        )
        return session

    def base_key(self, document: StoredDocument) -> bytes:
        """Facts that a document's checkpoints depend on besides its tokens: tenant, weights and the way of reading."""
        how = document.options.model_dump_json(exclude={"cite"})
        return hashlib.sha256(f"{document.tenant}\0{self.digest}\0{how}".encode()).digest()

    def find_session(self, document: StoredDocument) -> LandmarkSession | None:
        """The cached session at a document's last checkpoint, if it was read that far."""
        base_key = self.base_key(document)
        end = last_checkpoint(base_key, document.ids)[1]
        found = self.cache.find_longest(base_key, document.ids, end)
        return found[0] if found is not None and found[1] == end else None

    def export_blocks(self, document: StoredDocument, session: LandmarkSession) -> bytes:
        """Serialise what `find_session` returned, for other replicas."""
        return pack_blocks(session, last_checkpoint(self.base_key(document), document.ids)[0].hex())

    def import_blocks(self, document: StoredDocument, blocks: bytes) -> None:
        """Cache the blocks that another replica exported, as if they had been read here.

        Raises:
            BlocksError: They are not those of this document.
        """
        base_key = self.base_key(document)
        key, end = last_checkpoint(base_key, document.ids)
        session = unpack_blocks(blocks, key.hex(), self.new_session(document.options), end)
        self.cache.insert(base_key, document.ids, session)

    def max_bytes(self, tokens: int) -> int:
        """Most bytes of a session of so many tokens: keys and values, landmarks, and their keys once more."""
        size: int = self.net.block
        return -(-tokens * (size + 2) // size + size) * dense_token_bytes(self.new_session(LandmarkOptions()))

    def _describe(self, source: _LandmarkSource) -> LongctxAnswer:
        sessions = source.finished
        answer = LongctxAnswer(
            blocks_total=max((s.session.first_block + s.session.num_blocks for s in sessions), default=0),
            blocks_loaded=len(set().union(*(s.loaded_blocks for s in sessions))),
            bytes_moved=sum(s.moved_bytes for s in sessions),
            state_version=int(source.document is not None),
        )
        if not source.options.cite:
            return answer
        votes = [layer for session in sessions for token in session.votes for layer in token]
        found = [source.offsets.to_citation(block) for block in citations(votes, self.net.block, MAX_CITATIONS)]
        cited_tokens = self._cite_tokens(sessions[0]) if sessions else []
        return answer.model_copy(update={"citations": found, "cited_tokens": cited_tokens})

    def _cite_tokens(self, session: LandmarkRequestSession) -> list[CitedToken]:
        """Retrieved blocks of each token of an answer."""
        text, pairs = self.tokenizer.token_text, zip(session.answer_ids, session.votes, strict=False)
        return [CitedToken(token=text(token), blocks=_rank_blocks(layers)) for token, layers in pairs]


@dataclass(frozen=True)
class _BlockOffsets:
    """Character offsets of blocks in the texts that were read: the document, then the prompt.

    Attributes:
        prompt: Text of the prompt; None where token ids were given.
        prompt_tokens: Tokens of the prompt.
    """

    tokenizer: OffsetTokenizer
    document: StoredDocument | None
    prompt: str | None
    prompt_tokens: int

    def to_citation(self, block: RetrievedBlock) -> Citation:
        """A citation of a block, with its text and offsets."""
        behind = len(self.document.ids) if self.document else 0
        document = self.document if block.start < behind else None
        text = document.text if document is not None else self.prompt
        begin, count = (0, behind) if document is not None else (behind, self.prompt_tokens)
        offsets = self.tokenizer.offsets(text) if text is not None else []
        covered = offsets[block.start - begin : min(block.end - begin, count)]
        start, end = (covered[0][0], covered[-1][1]) if covered else (None, None)
        return Citation(
            **asdict(block),
            char_start=start,
            char_end=end,
            document=document.id if document is not None else None,
            text="" if text is None or not covered else text[start:end],
        )


def _rank_blocks(layers: Sequence[Tensor]) -> list[int]:
    """Blocks of one token, most votes first, ties by block."""
    votes = Counter(block for layer in layers for block in layer.flatten().tolist())
    return sorted(votes, key=lambda block: (-votes[block], block))
