"""Response store: answers of the Responses API that were asked to be kept, each tenant's in the object store.

tenants/<digest>/openai/responses/<id>.json     the response and the conversation that led to it

Calls block. Knows no HTTP and no model.
"""

import re
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from fovea.errors import NotFound
from fovea_responses.wire import InputItem, ResponseObject
from shared.storage import ExpiringObjects, ObjectStore

KEPT_FOR = timedelta(days=30)
"""How long a response is kept, as OpenAI keeps them."""

MAX_RESPONSES = 1000
"""Responses of one tenant; the oldest make room."""

MAX_BYTES = 2**28
"""Bytes of the responses of one tenant, each with its whole conversation; the oldest make room."""

_ID = re.compile(r"resp_[0-9a-f]{32}")


class StoredResponse(BaseModel):
    """A response, and the items of its conversation before it: what the next request goes on from."""

    response: ResponseObject
    input: list[dict[str, Any]]

    @property
    def conversation(self) -> list[InputItem]:
        """All items, the answer included."""
        return [InputItem.model_validate(item) for item in (*self.input, *self.response.output)]


class ResponseStore:
    """Keeps the responses of one tenant; replicas with the same object store share them.

    Args:
        objects: The tenant's objects.
    """

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = ExpiringObjects(objects.under("openai", "responses"), KEPT_FOR, MAX_RESPONSES, MAX_BYTES)

    def put(self, stored: StoredResponse) -> None:
        """Keep a response; those that are too old, or too many, go."""
        self._objects.put(f"{stored.response.id}.json", stored.model_dump_json().encode())

    def get(self, response_id: str, field: str | None = None) -> StoredResponse:
        """A response by its id; `field` is the parameter that named it.

        Raises NotFound: It is unknown, was deleted, or is older than 30 days.
        """
        content = self._objects.get(f"{response_id}.json") if _ID.fullmatch(response_id) else None
        if content is None:
            hint = "A response is kept, for 30 days, where its request says store: true."
            raise NotFound(f"There is no stored response {response_id[:80]!r}.", hint=hint, field=field)
        return StoredResponse.model_validate_json(content)

    def delete(self, response_id: str) -> None:
        """Delete a response.

        Raises NotFound: It is not there.
        """
        self.get(response_id)
        self._objects.delete(f"{response_id}.json")
