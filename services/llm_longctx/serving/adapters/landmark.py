"""A landmark model's voice: prompts are read through their best blocks, and answers say which blocks those were.

A document is read once; questions about it begin behind it. Knows sessions, blocks and places in texts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from services.llm_longctx.engine import GenerationRequest
from services.llm_longctx.mixers.landmark.attention import Citation as Found
from services.llm_longctx.mixers.landmark.attention import citations
from services.llm_longctx.mixers.landmark.serialization import pack_blocks, unpack_blocks
from services.llm_longctx.mixers.landmark.session import LandmarkSession
from services.llm_longctx.serving.adapters.landmark_options import LandmarkOptions
from services.llm_longctx.serving.request_state import Brought, Document
from services.llm_longctx.serving.session_model import MixerVoice, finite
from services.llm_longctx.serving.toy_tokenizers import Placed
from services.llm_longctx.state.document_cache import STRETCH, DocumentCache, beginning
from shared import figures
from shared.api.text import Citation, CitedToken, GenerationOptions, LongctxAnswer
from shared.errors import InvalidOption

__all__ = ["CHUNK", "LandmarkAdapter", "LandmarkStream"]

CHUNK = 16
"""Tokens read at a time, on an absolute grid: with its blocks a chunk stays inside the trained positions."""

TOP = 8
"""Most citations."""


class LandmarkStream:
    """A landmark session as the scheduler runs it; see `RequestSession`.

    Args:
        session: The session.
        num_read: Tokens of the request that it has read.
        prompt: Tokens of the whole prompt; votes count from its last token on.
        mute: Tokens that are never drawn.
        beginning: Where what is read is kept: a shelf, the key of how it is read, and the document.
    """

    def __init__(
        self,
        session: LandmarkSession,
        num_read: int,
        prompt: int,
        mute: Sequence[int],
        beginning: tuple[DocumentCache, bytes, Document] | None = None,
    ) -> None:
        self.session, self.num_read = session, num_read
        self._prompt, self._mute, self._beginning = prompt, list(mute), beginning
        self._before = session.moved
        self.votes: list[list[Tensor]] = []
        self.said: list[int] = []
        self.loaded: set[int] = set()
        self.retrieved = 0
        self.num_fetched = self.num_stored = 0

    @property
    def max_chunk(self) -> int:
        """Tokens until the next border of the grid."""
        return CHUNK - self.num_read % CHUNK

    @property
    def nbytes(self) -> int:
        """Bytes of blocks, landmarks and tails."""
        return self.session.nbytes

    @property
    def dense_nbytes(self) -> int:
        """Keys and values of every token in every layer."""
        return self.num_read * dense_token_bytes(self.session)

    @property
    def density(self) -> float:
        """Blocks fetched over blocks stored, mean over tokens."""
        return self.num_fetched / self.num_stored if self.num_stored else 1.0

    @property
    def moved(self) -> int:
        """Bytes fetched from where blocks wait, for this request."""
        return self.session.moved - self._before

    def feed(self, tokens: Sequence[int]) -> Tensor:
        """Read tokens; their logits [t,V]."""
        stored = self.session.stored
        step = self.session.feed(torch.tensor([list(tokens)]))
        self.said += tokens if self.num_read >= self._prompt else ()
        self.num_read += len(tokens)
        most = max((blocks.shape[-1] for blocks in step.blocks if blocks is not None), default=0)
        self.num_fetched += most * len(tokens)
        self.num_stored += stored * len(tokens)
        chosen = [blocks for blocks in step.blocks if blocks is not None]
        self.retrieved += sum(blocks.numel() for blocks in chosen)
        for blocks in chosen:
            self.loaded.update(torch.unique(blocks).tolist())
        if self.num_read >= self._prompt:
            last = int(step.kept.nonzero()[-1])
            # In the first layer all landmarks have the same key: its choice says nothing but how old blocks are.
            later = [blocks for blocks in step.blocks[1:] if blocks is not None]
            self.votes.append([blocks[:, :, min(last, blocks.shape[2] - 1)][:, :, None] for blocks in later])
        self._keep()
        logits = finite(step.logits[0])
        logits[:, self._mute] = -torch.inf
        return logits

    def fork(self) -> Self:
        """A stream that goes its own way from here."""
        twin = type(self)(self.session.fork(), self.num_read, self._prompt, self._mute)
        twin.votes, twin.said, twin.loaded = list(self.votes), list(self.said), set(self.loaded)
        twin.retrieved, twin.num_fetched, twin.num_stored = self.retrieved, self.num_fetched, self.num_stored
        return twin

    def close(self) -> None:
        """Nothing is held beyond memory."""

    def _keep(self) -> None:
        if self._beginning is None or self.num_read % STRETCH:
            return
        shelf, base, document = self._beginning
        if self.num_read <= len(document.ids):
            shelf.add(base, document.ids[: self.num_read], self.session)
        if self.num_read == len(document.ids) // STRETCH * STRETCH and document.offer is not None:
            document.offer()


@dataclass(frozen=True, eq=False)
class _Source:
    """Opens the session of one request, and keeps each answer's at its end; see `SessionSource`.

    Attributes:
        ids: Document and prompt.
        knobs: How they are read.
        places: Where their tokens stand in their texts.
        document: Read before, perhaps.
        max_bytes: Bytes that a session may come to.
        is_counted: Whether metrics count what it fetched.
        finished: Sessions of the answers that ended well.
    """

    adapter: LandmarkAdapter
    ids: Sequence[int]
    knobs: LandmarkOptions
    places: _Places
    document: Document | None
    max_bytes: int
    is_counted: bool = True
    finished: list[LandmarkStream] = field(default_factory=list)

    def open(self) -> LandmarkStream:
        """A session behind what is known of the document."""
        return self.adapter.opened(self.ids, self.knobs, self.document)

    def on_finish(self, session: LandmarkStream, last: Sequence[int]) -> None:
        """Keep what the answer looked at."""
        session.said += last
        self.finished.append(session)
        if self.is_counted:
            figures.landmark(self.adapter.name, session.retrieved, session.moved)


@dataclass(frozen=True)
class LandmarkAdapter(MixerVoice):
    """A landmark network, ready to speak.

    Attributes:
        shelf: Documents that were read.
    """

    shelf: DocumentCache = field(default_factory=DocumentCache)

    def prepare(
        self,
        ids: Sequence[int],
        wanted: int | None,
        options: GenerationOptions,
        field: str,
        text: str | None,
        brought: Brought | None,
    ) -> GenerationRequest:
        """A request behind its document.

        Raises:
            InvalidOption: An unknown knob, a landmark in the prompt, or a document that can't be read like this.
            ContextLengthExceeded: Document and prompt together are too long.
        """
        landmark = self.net.landmark_id
        if landmark in ids:
            detail = "The prompt holds a landmark, which would close an empty or broken block."
            raise InvalidOption(detail, hint="Leave landmarks out: they are put where they belong.", field=field)
        document = brought if isinstance(brought, Document) else None
        knobs = _knobs(options, document)
        whole = [*document.ids, *ids] if document else list(ids)
        self.fits(whole, field)
        places = _Places(self.tokenizer, document, text, len(ids))
        max_tokens = self.most(whole, wanted)
        max_bytes = self.most_bytes(len(whole) + max_tokens)
        return self.request_of(whole, max_tokens, options, _Source(self, whole, knobs, places, document, max_bytes))

    def reading_of(self, document: Document) -> GenerationRequest:
        """The request that only reads a document."""
        places = _Places(self.tokenizer, document, document.text, 0)
        max_bytes = self.most_bytes(len(document.ids))
        source = _Source(self, document.ids, document.options, places, document, max_bytes, is_counted=False)
        return GenerationRequest(document.ids, max_tokens=0, session=source)

    def extra_payload(self, request: GenerationRequest) -> LongctxAnswer | None:
        """The blocks that the answers looked at, and citations if they are wanted."""
        source = request.session
        return self._describe(source) if isinstance(source, _Source) else None

    def opened(self, ids: Sequence[int], knobs: LandmarkOptions, document: Document | None) -> LandmarkStream:
        """The stream that reads these tokens, behind as much of the document as is known. On the scheduler's thread."""
        mute = [self.net.landmark_id]
        if document is None:
            return LandmarkStream(self.session(knobs), 0, len(ids), mute)
        base, most = self.base(document), min(len(document.ids), len(ids) - 1)
        if (found := self.shelf.longest(base, document.ids, most)) is None:
            session, read = self.session(knobs), 0
        else:
            session, read = found[0].fork(knobs.blocks, knobs.selection), found[1]
        same = document.options == knobs.model_copy(update={"cite": document.options.cite})
        return LandmarkStream(session, read, len(ids), mute, (self.shelf, base, document) if same else None)

    def session(self, knobs: LandmarkOptions) -> LandmarkSession:
        """A new session that reads as the knobs say."""
        session: LandmarkSession = self.net.session(
            1, blocks=knobs.blocks, selection=knobs.selection, offload=knobs.offload, capacity=knobs.capacity
        )
        return session

    def base(self, document: Document) -> bytes:
        """What a document's beginnings depend on beside its tokens: whose it is, the weights and how it is read."""
        how = document.options.model_dump_json(exclude={"cite"})
        return hashlib.sha256(f"{document.tenant}\0{self.digest}\0{how}".encode()).digest()

    def kept(self, document: Document) -> LandmarkSession | None:
        """What is kept here of a document up to its last whole stretch, if it was read that far."""
        base = self.base(document)
        end = beginning(base, document.ids)[1]
        found = self.shelf.longest(base, document.ids, end)
        return found[0] if found is not None and found[1] == end else None

    def packed(self, document: Document, session: LandmarkSession) -> bytes:
        """What `kept` gave as bytes, for other replicas."""
        return pack_blocks(session, beginning(self.base(document), document.ids)[0].hex())

    def take(self, document: Document, blocks: bytes) -> None:
        """Keep what another replica packed, as if it had been read here.

        Raises:
            BlocksError: It is not what would have been read.
        """
        base = self.base(document)
        key, end = beginning(base, document.ids)
        session = unpack_blocks(blocks, key.hex(), self.session(document.options), end)
        self.shelf.plant(base, document.ids, session)

    def most_bytes(self, tokens: int) -> int:
        """Most that a session of so many tokens remembers: keys and values, landmarks, and their keys once more."""
        size: int = self.net.block
        return -(-tokens * (size + 2) // size + size) * dense_token_bytes(self.session(LandmarkOptions()))

    def _describe(self, source: _Source) -> LongctxAnswer:
        ends = source.finished
        votes = [layer for stream in ends for token in stream.votes for layer in token]
        answer = LongctxAnswer(
            blocks_total=max((s.session.first + s.session.stored for s in ends), default=0),
            blocks_loaded=len(set().union(*(s.loaded for s in ends))),
            bytes_moved=sum(s.moved for s in ends),
            state_version=int(source.document is not None),
        )
        if not source.knobs.cite:
            return answer
        found = [source.places.cited(one) for one in citations(votes, self.net.block, TOP)]
        return answer.model_copy(update={"citations": found, "cited_tokens": self._each(ends[0]) if ends else []})

    def _each(self, stream: LandmarkStream) -> list[CitedToken]:
        """Blocks per token of one answer."""
        pairs = zip(stream.said, stream.votes, strict=False)
        return [CitedToken(token=self.tokenizer.token_text(token), blocks=_ranked(layers)) for token, layers in pairs]


@dataclass(frozen=True)
class _Places:
    """Where tokens of a stream stand in the texts that it was cut from: the document, then the prompt.

    Attributes:
        prompt: Text of the prompt; None where token ids were given.
        asked: Tokens of the prompt.
    """

    tokenizer: Placed
    document: Document | None
    prompt: str | None
    asked: int

    def cited(self, found: Found) -> Citation:
        """A block with its place."""
        behind = len(self.document.ids) if self.document else 0
        inside = self.document is not None and found.start < behind
        text = self.document.text if self.document is not None and inside else self.prompt
        begin, count = (0, behind) if inside else (behind, self.asked)
        spans = self.tokenizer.spans(text) if text is not None else []
        covered = spans[found.start - begin : min(found.end - begin, count)]
        start, end = (covered[0][0], covered[-1][1]) if covered else (None, None)
        return Citation(
            block=found.block,
            start=found.start,
            end=found.end,
            char_start=start,
            char_end=end,
            document=self.document.id if self.document is not None and inside else None,
            text="" if text is None else text[start:end] if covered else "",
            weight=found.weight,
            hits=found.hits,
        )


def dense_token_bytes(session: LandmarkSession) -> int:
    """Bytes of one token's keys and values in every layer, in float32."""
    width: int = session.net.embed(torch.zeros(1, 1, dtype=torch.long)).shape[-1]
    return 8 * width * len(session.net.layers)


def _ranked(layers: Sequence[Tensor]) -> list[int]:
    """Blocks of one token, most votes first, ties by block."""
    votes = Counter(block for layer in layers for block in layer.flatten().tolist())
    return sorted(votes, key=lambda block: (-votes[block], block))


def _knobs(options: GenerationOptions, document: Document | None) -> LandmarkOptions:
    """The knobs of a request; a document's own where it gives none.

    Raises:
        InvalidOption: It wants the document kept otherwise than it was, or shown.
    """
    given = options.longctx
    if document is None:
        return LandmarkOptions.of(given)
    if getattr(options, "echo", False):
        detail = "A document is not echoed."
        raise InvalidOption(detail, hint="GET /v1/documents/{id} shows it.", field="echo")
    asked = LandmarkOptions.of(given)
    knobs = document.options.model_copy(update={name: getattr(asked, name) for name in asked.model_fields_set})
    for name in ("offload", "capacity"):
        if getattr(knobs, name) != getattr(document.options, name):
            detail = f"The document was stored with {name}={getattr(document.options, name)!r}."
            raise InvalidOption(detail, hint="Leave it out, or store it anew.", field=f"longctx.{name}")
    return knobs
