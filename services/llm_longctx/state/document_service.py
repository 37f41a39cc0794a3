"""Documents of landmark models: read once, asked about often.

A document's id follows from the weights, its tokens and how it is read, so that storing it twice is storing it once.
Its text is kept sealed. What the model made of it is on the model's shelf and, sealed too, where other replicas fetch
it; it is made again where it is missing or not what it should be. Knows the store and the voice that reads; knows
nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from dataclasses import replace
from typing import Literal

from services.llm_longctx.engine import Sampling
from services.llm_longctx.mixers.landmark.serialization import BlocksError
from services.llm_longctx.serving.adapters.landmark import LandmarkAdapter
from services.llm_longctx.serving.adapters.landmark_options import LandmarkOptions
from services.llm_longctx.serving.generation import Generation
from services.llm_longctx.serving.request_state import Document
from services.llm_longctx.state.document_store import DocumentStore
from shared import figures, telemetry
from shared.api.sessions import DocumentInfo, DocumentRequest, DocumentText
from shared.errors import Conflict, InvalidOption, NotReady
from shared.registry import CallContext

__all__ = ["Documents"]

Source = Literal["local", "fetched", "read"]
"""Where what was made of a document was."""


class Documents:
    """The documents of one tenant."""

    def __init__(self, store: DocumentStore, tenant: str) -> None:
        self._store, self._tenant = store, tenant

    async def add(self, asked: DocumentRequest, voice: LandmarkAdapter, run: CallContext) -> DocumentInfo:
        """Read a text and keep it.

        Raises:
            InvalidOption: It holds no token, or a knob is wrong.
            ContextLengthExceeded: It is too long.
        """
        options = LandmarkOptions.of(asked.longctx)
        ids = tuple(await asyncio.to_thread(voice.read, asked.text, "text"))
        if not ids:
            raise InvalidOption("The document is empty.", field="text")
        voice.fits(ids, "text")
        follows = json.dumps([voice.digest, options.model_dump(exclude={"cite"}), ids])
        document = Document(
            f"doc_{hashlib.sha256(follows.encode()).hexdigest()[:24]}", self._tenant, asked.text, ids, options
        )
        how = await self._at_hand(document, voice)
        cached = await asyncio.to_thread(_fill, voice, document, run)
        facts = _facts(document, voice, asked.name, int(time.time()))
        record = DocumentText(**facts, text=asked.text).model_dump_json().encode()
        await self._store.put(self._tenant, document.id, record)
        there = how != "read" and await self._store.touch_blocks(self._tenant, document.id)
        shared = there or await self._share(document, voice)
        return DocumentInfo(**facts, cached_tokens=cached, shared=shared)

    async def get(self, name: str) -> DocumentText:
        """A document with its text.

        Raises:
            NotFound: The tenant has no such document.
        """
        return DocumentText.model_validate_json(await self._store.get(self._tenant, name))

    async def recent(self, limit: int) -> list[DocumentInfo]:
        """The newest documents, without their texts."""
        names = (await self._store.names(self._tenant))[:limit]
        found = [await self.get(name) for name in names]
        return [DocumentInfo(**one.model_dump(exclude={"text"})) for one in found]

    async def delete(self, name: str, voice: LandmarkAdapter | None) -> None:
        """Forget a document, and what a model that is served here has made of it."""
        kept = await self.get(name)
        await self._store.delete(self._tenant, name)
        if voice is not None:
            document = self._document(kept, voice)
            voice.shelf.forget(voice.base(document), document.ids)
            figures.landmark_resident(voice.name, voice.shelf.blocks)

    async def brought(self, name: str, voice: LandmarkAdapter) -> Document:
        """The document that a request asks about.

        Raises:
            NotFound: The tenant has no such document.
            InvalidOption: It was stored for another model.
        """
        kept = await self.get(name)
        if kept.model != voice.name:
            detail = f"The document {name} was stored for {kept.model}, not for {voice.name}."
            raise InvalidOption(detail, field="document_id")
        document, loop = await asyncio.to_thread(self._document, kept, voice), asyncio.get_running_loop()
        if await self._at_hand(document, voice) == "local":
            await self._store.touch_blocks(self._tenant, name)

        def offer() -> None:
            asyncio.run_coroutine_threadsafe(self._share(document, voice), loop)

        return replace(document, offer=offer)

    async def _at_hand(self, document: Document, voice: LandmarkAdapter) -> Source:
        """Bring what was made of a document here, if that spares reading it; tells where it was."""
        how: Source = "local" if await asyncio.to_thread(voice.kept, document) else "read"
        if how == "read" and await self._fetched(document, voice):
            how = "fetched"
        figures.landmark_document(voice.name, how)
        telemetry.log().info("document", model=voice.name, document=document.id, blocks=how, tokens=len(document.ids))
        return how

    async def _fetched(self, document: Document, voice: LandmarkAdapter) -> bool:
        try:
            if (blocks := await self._store.blocks(self._tenant, document.id)) is None:
                return False
            await asyncio.to_thread(voice.take, document, blocks)
        except (Conflict, BlocksError, NotReady) as error:  # reading again is slower, and always right
            _unshared(document, voice, "away" if isinstance(error, NotReady) else "invalid", str(error))
            return False
        figures.landmark_resident(voice.name, voice.shelf.blocks)
        return voice.kept(document) is not None

    async def _share(self, document: Document, voice: LandmarkAdapter) -> bool:
        """Keep what was made of a document for other replicas; whether it is kept."""
        session = voice.kept(document)
        if session is None or not session.read:
            return False
        if session.nbytes > self._store.room:
            detail = f"{session.nbytes:,} bytes; FOVEA_DOCUMENT_CACHE_MAX_BYTES is {self._store.room:,}"
            _unshared(document, voice, "too_large", detail)
            return False
        try:
            blocks = await asyncio.to_thread(voice.packed, document, session)
            return await self._store.keep_blocks(self._tenant, document.id, blocks)
        except NotReady as error:
            _unshared(document, voice, "away", error.detail)
            return False

    def _document(self, kept: DocumentText, voice: LandmarkAdapter) -> Document:
        options = LandmarkOptions.model_validate(kept.longctx)
        return Document(kept.id, self._tenant, kept.text, tuple(voice.read(kept.text, "text")), options)


def _fill(voice: LandmarkAdapter, document: Document, run: CallContext) -> int:
    """Read a document onto the shelf; tokens of it that were there before."""
    generation = Generation(voice.scheduler, voice.tokenizer, run)
    with telemetry.bind(model=voice.name):
        generation.begin(voice.reading_of(document), [Sampling()])
        for _ in generation:
            pass
    figures.landmark_resident(voice.name, voice.shelf.blocks)
    return generation.requests[0].stats.cached_tokens


def _unshared(document: Document, voice: LandmarkAdapter, reason: str, detail: str) -> None:
    figures.landmark_unshared(voice.name, reason)
    telemetry.log().warning(
        "blocks of a document are not shared", model=voice.name, document=document.id, reason=reason, detail=detail
    )


def _facts(document: Document, voice: LandmarkAdapter, name: str | None, created: int) -> dict[str, object]:
    return {
        "id": document.id,
        "model": voice.name,
        "name": name,
        "tokens": len(document.ids),
        "blocks": len(document.ids) // voice.net.block,
        "created": created,
        "longctx": document.options.model_dump(),
    }
