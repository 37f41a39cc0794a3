"""One call to the gateway as data: what is sent, and how its answer is read. Knows no socket, no thread and no loop.

`Client` and `AsyncClient` both carry out these values, so that neither repeats the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx2

from fovea.errors import parse_error, parse_stream_error
from shared.errors import Fault

__all__ = ["Call", "StreamCall", "read_bytes", "read_json"]

Answer = TypeVar("Answer")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """A request and the function that turns its response into an answer.

    Attributes:
        method: HTTP method.
        path: Path below the gateway's URL.
        read: Turns a successful response into the answer; raises `ValueError` when it can't.
        json: Body to be sent as JSON.
        content: Body to be sent as it is.
        files: Parts to be sent as multipart: field → (file name, bytes, content type).
        form: Further multipart fields.
        params: Query parameters; `None` values are left out.
        headers: Headers of this call alone.
    """

    method: str
    path: str
    read: Callable[[httpx2.Response], Answer]
    json: Any = None
    content: bytes | None = None
    files: Mapping[str, tuple[str, bytes, str]] = field(default_factory=dict)
    form: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str | int | None] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def request(self, client: httpx2.Client | httpx2.AsyncClient) -> httpx2.Request:
        """The HTTP request, with the client's base URL, key and time-outs."""
        return client.build_request(
            self.method,
            self.path,
            json=self.json,
            content=self.content,
            files=self.files or None,
            data=self.form or None,
            params={name: value for name, value in self.params.items() if value is not None},
            headers=self.headers,
        )

    def answer(self, response: httpx2.Response) -> Answer:
        """The answer of a response that was read whole.

        Raises:
            FoveaError: The gateway refused, as the class that stands for its problem; `Fault` when the answer makes
                no sense to this version of the library.
        """
        if response.is_error:
            raise parse_error(response)
        try:
            return self.read(response)
        except ValueError as error:
            raise _unreadable(f"{self.method} {self.path}") from error


@dataclass(frozen=True, slots=True)
class StreamCall(Generic[Item]):
    """A call that is answered by server-sent events.

    Attributes:
        call: The request; its own `read` is not used.
        read: Turns the data of one event into an item; raises `ValueError` when it can't.
    """

    call: Call[Any]
    read: Callable[[str], Item]

    def ends(self, event: httpx2.ServerSentEvent) -> bool:
        """Whether this event only says that no other comes (OpenAI's `[DONE]`)."""
        return event.data == "[DONE]"

    def item(self, event: httpx2.ServerSentEvent) -> Item:
        """What an event carries.

        Raises:
            FoveaError: It says that the answer broke off.
        """
        try:
            if (error := parse_stream_error(json.loads(event.data))) is not None:
                raise error
            return self.read(event.data)
        except ValueError as error:
            raise _unreadable(self.call.path) from error


def read_json(response: httpx2.Response) -> Any:
    """The body as JSON."""
    return response.json()


def read_bytes(response: httpx2.Response) -> bytes:
    """The body as it is."""
    return response.content


def _unreadable(what: str) -> Fault:
    return Fault(
        f"{what} answered in a form that this library does not read.",
        hint="Compare the versions of client and gateway.",
    )
