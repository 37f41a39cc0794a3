"""How the console learns what is served: by asking the gateway's own HTTP surface, in process, with the caller's key.

So the console shows what its reader may see, knows nothing about how the gateway works, and needs no door of its own.
"""

from __future__ import annotations

from typing import Any

import httpx2
from starlette.requests import Request

from fovea.errors import parse_error
from shared.api.model import ModelEntry, ModelList
from shared.errors import Fault, FoveaError, NotFound, NotReady

__all__ = ["InProcessClient"]

_PASSED = ("authorization", "x-api-key", "traceparent", "x-request-id")
"""Headers of the reader's request that the question carries on."""


class InProcessClient:
    """Asks the app that serves a page, on behalf of the page's reader."""

    async def models(self, request: Request) -> list[ModelEntry]:
        """All models, as the reader may see them."""
        return ModelList.model_validate(await self._get(request, "v1/models")).data

    async def card(self, request: Request, name: str) -> dict[str, Any]:
        """Everything about one model.

        Raises:
            NotFound: There is no such model.
        """
        card = await self._get(request, f"v1/models/{name}")
        if not isinstance(card, dict):
            raise Fault("The model's card is not an object.")
        return card

    async def example(self, request: Request, name: str) -> dict[str, Any]:
        """A request that the model answers; empty where none is told."""
        try:
            example = await self._get(request, f"v1/models/{name}/example")
        except FoveaError:
            return {}
        return example if isinstance(example, dict) else {}

    async def methods(self, request: Request) -> list[dict[str, Any]]:
        """Attention methods with the schema of their knobs; none where no service has them."""
        try:
            found: list[dict[str, Any]] = await self._get(request, "v1/longctx/methods")
        except (NotFound, NotReady):
            return []
        return found

    async def templates(self, request: Request) -> list[str]:
        """Ids of the judges' templates; none where no service has them."""
        try:
            found = await self._get(request, "v1/judge/templates")
        except (NotFound, NotReady):
            return []
        return [one["template"]["id"] for one in found]

    async def _get(self, request: Request, path: str) -> Any:
        client = (request.client.host, request.client.port) if request.client else ("127.0.0.1", 0)
        headers = {name: request.headers[name] for name in ("host", *_PASSED) if name in request.headers}
        question = httpx2.Request("GET", f"{request.base_url}{path}", headers=headers)
        # The bare transport: a client around it would write a log line for every page.
        async with httpx2.ASGITransport(app=request.app, client=client) as transport:
            response = await transport.handle_async_request(question)
            await response.aread()
        if response.is_error:
            raise parse_error(response)
        return response.json()
