"""Continued requests: what `session_id` and `document_id` of a chat or completion load before the model reads it."""

from fastapi import Request
from pydantic_core import PydanticSerializationError

from fovea.api.text import GenerationOptions
from fovea.errors import Malformed
from fovea_memory.request_state import SessionTransaction, StoredDocument
from fovea_memory.routes.documents import get_document_service
from fovea_memory.routes.model_lookup import find_document_adapter, find_session_adapter
from fovea_memory.routes.sessions import get_session_service
from fovea_memory.state.session_service import digest_request
from shared.serving.host import Host


class ContinuedSession:
    """Loads the session that `session_id` names; an entry of the group `fovea.adapters`."""

    async def load(self, body: GenerationOptions, request: Request, host: Host) -> SessionTransaction | str:
        """Begin a request of the session; for a repeated one return the answer that the first one got."""
        adapter = find_session_adapter(host, body.model, request)
        try:
            digest = digest_request(body.model_dump_json(exclude={"stream", "stream_options"}))
        except PydanticSerializationError as error:
            detail = "The request is nested too deeply, or holds half a surrogate pair, which is not a character."
            raise Malformed(detail) from error
        idempotency_key = request.scope["fovea.run"].job or request.headers.get("idempotency-key")
        return await get_session_service(request).begin(str(body.session_id), adapter, digest, idempotency_key)


class ReadDocument:
    """Loads the document that `document_id` names; an entry of the group `fovea.adapters`."""

    async def load(self, body: GenerationOptions, request: Request, host: Host) -> StoredDocument:
        """Find the document, and its blocks if that spares reading it."""
        adapter = find_document_adapter(host, body.model, request)
        return await get_document_service(request).open(str(body.document_id), adapter)


SESSION = ContinuedSession()
DOCUMENT = ReadDocument()
