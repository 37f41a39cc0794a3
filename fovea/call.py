"""Calls to the gateway as data: what is sent, and how the answer is parsed. Opens no socket, thread or event loop.

`Client` and `AsyncClient` both send these values, so that neither repeats the other.
"""

import asyncio
import functools
import inspect
import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload
from urllib.parse import quote
from uuid import uuid4

import httpx2
from pydantic import BaseModel

from fovea.error_responses import parse_error, parse_stream_error
from fovea.errors import Fault, InvalidOption, NotReady

Answer = TypeVar("Answer")
Item = TypeVar("Item")
Options = ParamSpec("Options")
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """A request and the function that parses its response.

    Attributes:
        method: HTTP method.
        path: Path below the gateway's URL.
        read: Parses a successful response; raises `ValueError` when it can't.
        json, content: Body, sent as JSON or as it is.
        files: Parts sent as multipart: field → (file name, bytes, content type).
        form: Further multipart fields: text as it is, everything else as JSON.
        params: Query parameters; `None` values are left out.
        headers: Headers of this call only.
    """

    method: str
    path: str
    read: Callable[[httpx2.Response], Answer]
    json: Any = None
    content: bytes | None = None
    files: Mapping[str, tuple[str, bytes, str]] = field(default_factory=dict)
    form: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, str | int | None] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def build_request(self, client: httpx2.Client | httpx2.AsyncClient) -> httpx2.Request:
        """Build the HTTP request, with the client's base URL, key and timeouts."""
        form = {n: x if isinstance(x, str) else json.dumps(x, allow_nan=False) for n, x in self.form.items()}
        return client.build_request(
            self.method, self.path, json=self.json, content=self.content, files=self.files or None, data=form or None,
            headers=self.headers,
            params={name: value for name, value in self.params.items() if value is not None},
        )  # fmt: skip

    def with_key(self) -> "Call[Answer]":
        """Give the call an idempotency key, if it has none: all attempts to send it are one request."""
        return replace(self, headers={"idempotency-key": uuid4().hex, **self.headers})

    def parse(self, response: httpx2.Response) -> Answer:
        """Parse a response whose body was read.

        Raises FoveaError: the gateway answered with an error; `Fault` when this version of the library can't read the
        answer.
        """
        if not response.is_success:
            raise parse_error(response)
        try:
            return self.read(response)
        except ValueError as error:
            raise _build_unreadable(f"{self.method} {self.path}") from error


@dataclass(frozen=True, slots=True)
class StreamCall(Generic[Item]):
    """A call that is answered by server-sent events.

    Attributes:
        call: The request; its own `read` is not used.
        read: Parses the data of one event; raises `ValueError` when it can't.
        end: Data of the event that only marks the end (OpenAI's `[DONE]`), where the stream has one.
    """

    call: Call[Any]
    read: Callable[[str], Item]
    end: str | None = None

    def is_end(self, event: httpx2.ServerSentEvent) -> bool:
        """Whether this event only marks the end of the stream."""
        return event.data == self.end

    def finish(self) -> None:
        """Note that no event is left. Raises NotReady: the stream has a mark of its end, which did not come."""
        if self.end is not None:
            raise NotReady("The answer broke off before its end.", hint="Try again.")

    def parse_event(self, event: httpx2.ServerSentEvent) -> Item:
        """Parse one event. Raises FoveaError: the event says that the answer broke off."""
        try:
            if (error := parse_stream_error(json.loads(event.data))) is not None:
                raise error
            return self.read(event.data)
        except ValueError as error:
            raise _build_unreadable(self.call.path) from error


class Sender(Protocol):
    """A client, or a part of one, that sends calls and returns their answers."""

    def send(self, call: Call[Answer]) -> Answer:
        """Send a call and parse its answer."""


class AsyncSender(Protocol):
    """The same for asyncio."""

    async def send(self, call: Call[Answer]) -> Answer:
        """Send a call and parse its answer."""


class Sends(Generic[Options, Answer]):
    """A method of both clients that sends what a function builds, with the parameters and description of the function.

    The method of a `Client` returns the answer; that of an `AsyncClient` must be awaited, and reads
    files in a thread.
    """

    def __init__(self, build: Callable[Options, Call[Answer]], *, reads_files: bool = False) -> None:
        self._build, self._reads_files = build, reads_files

    @overload
    def __get__(self, sender: None, kind: type) -> Callable[Options, Call[Answer]]: ...
    @overload
    def __get__(self, sender: Sender, kind: type) -> Callable[Options, Answer]: ...
    @overload
    def __get__(self, sender: AsyncSender, kind: type) -> Callable[Options, Coroutine[Any, Any, Answer]]: ...
    def __get__(self, sender: Any, kind: type) -> Any:
        if sender is None:
            return self._build

        def send(*args: Options.args, **options: Options.kwargs) -> Any:
            return sender.send(self._build(*args, **options))

        async def read_and_send(*args: Options.args, **options: Options.kwargs) -> Any:
            return await sender.send(await asyncio.to_thread(self._build, *args, **options))

        reads_apart = self._reads_files and inspect.iscoroutinefunction(sender.send)
        return functools.wraps(self._build)(read_and_send if reads_apart else send)


class Part:
    """A part of a `Client`, such as `client.jobs`."""

    def __init__(self, client: Sender) -> None:
        self._client = client

    def send(self, call: Call[Answer]) -> Answer:
        """Send a call and parse its answer."""
        return self._client.send(call)


class AsyncPart:
    """A part of an `AsyncClient`."""

    def __init__(self, client: AsyncSender) -> None:
        self._client = client

    async def send(self, call: Call[Answer]) -> Answer:
        """Send a call and parse its answer."""
        return await self._client.send(call)


def quote_id(name: str, safe: str = "") -> str:
    """Quote an id as part of a path. Raises InvalidOption: it is empty or has dots that lead to another path."""
    if not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise InvalidOption(f"{name!r} can't be an id or a name.", hint="Lists of what there is show the ids.")
    return quote(name, safe, errors="surrogateescape")


def parse_as(kind: type[Model]) -> Callable[[httpx2.Response], Model]:
    """Make a parser of JSON bodies of one type."""
    return lambda response: kind.model_validate_json(response.content)


def read_json(response: httpx2.Response) -> Any:
    """The body as JSON."""
    return response.json()


def read_bytes(response: httpx2.Response) -> bytes:
    """The body as it is."""
    return response.content


def _build_unreadable(what: str) -> Fault:
    return Fault(
        f"The answer of {what} can't be read by this version of the library.",
        hint="Compare the versions of the client and the gateway.",
    )
