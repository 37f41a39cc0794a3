"""Document service: texts that a landmark model reads once, and that requests ask about.

A document's id follows from the weights, its tokens and how it is read, so storing it twice is storing it once. Its
text is stored encrypted. Its blocks are in the model's document cache and, encrypted, in Redis for other replicas; they
are made again where they are missing or invalid. Knows the document store and the landmark adapter; knows no HTTP.
"""

import asyncio
import hashlib
import json
import time
from contextlib import suppress
from dataclasses import replace
from typing import Literal

from fovea.api.sessions import DocumentInfo, DocumentRequest, DocumentText
from fovea.errors import Conflict, InvalidOption, NotFound, NotReady
from fovea_memory import metrics
from fovea_memory.adapters.landmark import LandmarkAdapter
from fovea_memory.adapters.landmark_options import LandmarkOptions
from fovea_memory.mixers.landmark.serialization import BlocksError
from fovea_memory.request_state import StoredDocument
from fovea_memory.state.document_store import DocumentStore
from services.llm_longctx.serving.generation import Generation
from shared import telemetry
from shared.registry import CallContext

BlockSource = Literal["local", "fetched", "read"]
"""Where a document's blocks come from: this replica's cache, Redis, or the model, which has to read the text."""


class DocumentService:
    """The documents of one tenant."""

    def __init__(self, store: DocumentStore, tenant: str) -> None:
        self._store, self._tenant = store, tenant

    async def add(self, request: DocumentRequest, adapter: LandmarkAdapter, run: CallContext) -> DocumentInfo:
        """Read a text and store it.

        Raises:
            InvalidOption: It holds no token, or a knob is wrong.
            ContextLengthExceeded: It is too long.
        """
        options = LandmarkOptions.of(request.longctx)
        ids = tuple(await asyncio.to_thread(adapter.tokenize, request.text, "text"))
        if not ids:
            raise InvalidOption("The document is empty.", field="text")
        adapter.check_length(ids, "text")
        content = json.dumps([adapter.digest, options.model_dump(exclude={"cite"}), ids])
        name = f"doc_{hashlib.sha256(content.encode()).hexdigest()[:24]}"
        document = StoredDocument(name, self._tenant, request.text, ids, options)
        source = await self._locate_blocks(document, adapter)
        cached = await _prefill(adapter, document, run)
        description = _describe(document, adapter, request.name, int(time.time()))
        record = DocumentText(**description, text=request.text).model_dump_json().encode()
        await self._store.put(self._tenant, document.id, record)
        is_shared = source != "read" and await self._store.touch_blocks(self._tenant, document.id)
        is_shared = is_shared or await self._share_blocks(document, adapter)
        return DocumentInfo(**description, cached_tokens=cached, shared=is_shared)

    async def get(self, name: str) -> DocumentText:
        """A document with its text.

        Raises:
            NotFound: The tenant has no such document.
        """
        return DocumentText.model_validate_json(await self._store.get(self._tenant, name))

    async def list_newest(self, limit: int) -> list[DocumentInfo]:
        """The newest documents, without their texts."""
        records = list[DocumentInfo]()
        for name in (await self._store.list_ids(self._tenant))[:limit]:
            with suppress(NotFound):  # deleted in between
                record = DocumentText.model_validate_json(await self._store.get(self._tenant, name, uses=False))
                records.append(DocumentInfo(**record.model_dump(exclude={"text"})))
        return records

    async def delete(self, name: str, adapter: LandmarkAdapter | None) -> None:
        """Delete a document, and its blocks in the cache of a model that is served here."""
        record = await self.get(name)
        await self._store.delete(self._tenant, name)
        if adapter is not None:
            document = self._to_document(record, adapter)
            adapter.cache.remove(adapter.base_key(document), document.ids)
            metrics.RESIDENT_BLOCKS.labels(adapter.name).set(adapter.cache.num_blocks)

    async def open(self, name: str, adapter: LandmarkAdapter) -> StoredDocument:
        """The document that a request asks about, with its blocks cached here if that spares reading it.

        Raises:
            NotFound: The tenant has no such document.
            InvalidOption: It was stored for another model.
        """
        record = await self.get(name)
        if record.model != adapter.name:
            detail = f"The document {name} was stored for {record.model}, not for {adapter.name}."
            raise InvalidOption(detail, field="document_id")
        document, loop = await asyncio.to_thread(self._to_document, record, adapter), asyncio.get_running_loop()
        if await self._locate_blocks(document, adapter) == "local":
            await self._store.touch_blocks(self._tenant, name)

        def share() -> None:
            asyncio.run_coroutine_threadsafe(self._share_blocks(document, adapter), loop)

        return replace(document, on_prefilled=share)

    async def _locate_blocks(self, document: StoredDocument, adapter: LandmarkAdapter) -> BlockSource:
        """Where the document's blocks come from; those in Redis are cached here."""
        source: BlockSource = "local" if await asyncio.to_thread(adapter.find_session, document) else "read"
        if source == "read" and await self._fetch_blocks(document, adapter):
            source = "fetched"
        metrics.DOCUMENTS.labels(adapter.name, source).inc()
        telemetry.log().info(
            "document", model=adapter.name, document=document.id, blocks=source, tokens=len(document.ids)
        )
        return source

    async def _fetch_blocks(self, document: StoredDocument, adapter: LandmarkAdapter) -> bool:
        try:
            if (blocks := await self._store.get_blocks(self._tenant, document.id)) is None:
                return False
            await asyncio.to_thread(adapter.import_blocks, document, blocks)
        except (Conflict, BlocksError, NotReady) as error:  # reading again is slower, and always right
            _report_unshared(document, adapter, "away" if isinstance(error, NotReady) else "invalid", str(error))
            return False
        metrics.RESIDENT_BLOCKS.labels(adapter.name).set(adapter.cache.num_blocks)
        return adapter.find_session(document) is not None

    async def _share_blocks(self, document: StoredDocument, adapter: LandmarkAdapter) -> bool:
        """Store a document's blocks for other replicas; whether they are stored."""
        session = adapter.find_session(document)
        if session is None or not session.tokens_read:
            return False
        if session.nbytes > self._store.max_blocks_bytes:
            detail = f"{session.nbytes:,} bytes; FOVEA_DOCUMENT_CACHE_MAX_BYTES is {self._store.max_blocks_bytes:,}"
            _report_unshared(document, adapter, "too_large", detail)
            return False
        try:
            blocks = await asyncio.to_thread(adapter.export_blocks, document, session)
            return await self._store.put_blocks(self._tenant, document.id, blocks)
        except NotReady as error:
            _report_unshared(document, adapter, "away", error.detail)
            return False

    def _to_document(self, record: DocumentText, adapter: LandmarkAdapter) -> StoredDocument:
        options, ids = LandmarkOptions.model_validate(record.longctx), tuple(adapter.tokenize(record.text, "text"))
        return StoredDocument(record.id, self._tenant, record.text, ids, options)


async def _prefill(adapter: LandmarkAdapter, document: StoredDocument, run: CallContext) -> int:
    """Read a document into the cache; the number of its tokens that were cached before."""
    with Generation(adapter.scheduler, adapter.tokenizer, run) as generation:
        with telemetry.bind(model=adapter.name):
            generation.begin(adapter.build_prefill_request(document))
        while await generation.read() is not None:
            pass
    metrics.RESIDENT_BLOCKS.labels(adapter.name).set(adapter.cache.num_blocks)
    return generation.requests[0].stats.cached_tokens


def _report_unshared(document: StoredDocument, adapter: LandmarkAdapter, reason: str, detail: str) -> None:
    metrics.UNSHARED_BLOCKS.labels(adapter.name, reason).inc()
    telemetry.log().warning(
        "blocks of a document are not shared", model=adapter.name, document=document.id, reason=reason, detail=detail
    )


def _describe(document: StoredDocument, adapter: LandmarkAdapter, name: str | None, created: int) -> dict[str, object]:
    return {
        "id": document.id,
        "model": adapter.name,
        "name": name,
        "tokens": len(document.ids),
        "blocks": len(document.ids) // adapter.net.block,
        "created": created,
        "longctx": document.options.model_dump(),
    }
