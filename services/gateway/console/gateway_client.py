"""In-process client of the console: requests the gateway's own HTTP routes with the reader's key.

So the console shows what its reader may see, and knows nothing about how the gateway works.
"""

from typing import Any
from urllib.parse import quote

from starlette.requests import Request

from fovea.api.model import ModelEntry, ModelList
from fovea.error_responses import parse_error
from fovea.errors import DeadlineExceeded, FoveaError, NotFound, NotReady
from services.gateway.http.in_process import send_in_process

_DEADLINE_S = 4.0
"""Longest wait for a fact of a page: without it a page would wait for a lost replica as long as a request may take."""


class InProcessClient:
    """Sends requests to the app that serves a page, on behalf of the page's reader.

    Attributes:
        known_tasks: The tasks that were served when somebody last asked.
        has_outage: Whether some service had no ready model then.
    """

    def __init__(self) -> None:
        self.known_tasks: frozenset[str] = frozenset()
        self.has_outage = False
        self._cards: dict[str, dict[str, Any]] = {}

    async def models(self, request: Request) -> list[ModelEntry]:
        """Fetch the list of all models."""
        found = ModelList.model_validate(await self._get(request, "/v1/models")).data
        self.known_tasks = frozenset(entry.task for entry in found)
        self.has_outage = {entry.service for entry in found} > {entry.service for entry in found if entry.ready}
        return found

    async def card(self, request: Request, name: str) -> dict[str, Any]:
        """Fetch the card of one model; its last known one, marked not ready, while its service does not answer.

        Raises NotFound: there is no such model; NotReady: its service does not answer, and no card is known.
        """
        try:
            card = await self._get(request, f"/v1/models/{quote(name)}")
        except FoveaError as error:
            if error.status not in {502, 503, 504} or name not in self._cards:
                raise
            return {**self._cards[name], "ready": False}
        if not isinstance(card, dict) or "task" not in card:  # of another route, such as that of a model's example
            raise NotFound(f"There is no model {name!r}.", hint="Choose one from the page Models.")
        if parent := card.get("parent"):  # an adapter, which is its tenant's own, takes the requests of its model
            return {**await self.card(request, parent), **card}
        self._cards[name] = card
        return card

    async def example(self, request: Request, name: str) -> dict[str, Any]:
        """Fetch an example request of a model; empty where there is none."""
        example = await self._get_or(request, f"/v1/models/{name}/example", {}, FoveaError)
        return example if isinstance(example, dict) else {}

    async def methods(self, request: Request) -> list[dict[str, Any]]:
        """Fetch the attention methods with the schema of their settings; none where no service has them."""
        return list(await self._get_or(request, "/v1/longctx/methods", []))

    async def steering_vectors(self, request: Request) -> list[dict[str, Any]] | None:
        """Fetch the reader's steering vectors, newest first; None where no service has any.

        Raises PermissionDenied: the reader's key lacks the scope.
        """
        found: dict[str, list[dict[str, Any]]] = await self._get_or(request, "/v1/steering-vectors", {})
        return found.get("data")

    async def templates(self, request: Request) -> list[str]:
        """Fetch the ids of the judges' prompt templates; none where no service has them."""
        return [one["template"]["id"] for one in await self._get_or(request, "/v1/judge/templates", [])]

    async def _get_or(self, request: Request, path: str, otherwise: Any, kinds: Any = (NotFound, NotReady)) -> Any:
        """Fetch what not every service has."""
        try:
            return await self._get(request, path)
        except kinds:
            return otherwise

    async def _get(self, request: Request, path: str) -> Any:
        response = await send_in_process(request, path, deadline_s=_DEADLINE_S)
        if response.is_error:
            error = parse_error(response)
            if isinstance(error, DeadlineExceeded):
                raise NotReady(error.detail) from error
            raise error
        return response.json()
