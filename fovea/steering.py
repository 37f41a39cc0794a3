"""Steering vectors of a gateway, computed from contrasting prompts, and files of captured activations.

A chat uses a vector by name: `client.chat("…", interventions=[{"vector": "calm@1"}])`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from fovea.api.sessions import Deleted
from fovea.api.steering import SteeringVector, SteeringVectorDeleted, SteeringVectorList
from fovea.call import AsyncSender, Call, Sender, parse_as, read_bytes

_PATH = "/v1/steering-vectors"


def create(name: str, positive: Sequence[Any], negative: Sequence[Any], **options: Any) -> Call[SteeringVector]:
    """Compute the next version of a vector; options are those of `fovea.api.steering.SteeringVectorRequest`."""
    body = {"name": name, "positive": list(positive), "negative": list(negative)}
    given = {key: value for key, value in options.items() if value is not None}
    return Call("POST", _PATH, parse_as(SteeringVector), json=body | given)


def fetch(name: str, *, values: bool = False) -> Call[SteeringVector]:
    """Fetch a vector by `name@version`, or the newest of a name."""
    return Call(
        "GET", f"{_PATH}/{quote(name)}", parse_as(SteeringVector), params={"values": "true" if values else None}
    )


def fetch_all() -> Call[list[SteeringVector]]:
    """List all vectors, newest first."""
    return Call("GET", _PATH, lambda answer: parse_as(SteeringVectorList)(answer).data)


def delete(name: str) -> Call[SteeringVectorDeleted]:
    """Delete a version, or all of a name."""
    return Call("DELETE", f"{_PATH}/{quote(name)}", parse_as(SteeringVectorDeleted))


def capture(capture_id: str) -> Call[bytes]:
    """Fetch the NPZ file of a capture by its id or its `url`."""
    return Call("GET", _capture_path(capture_id), read_bytes)


def delete_capture(capture_id: str) -> Call[Deleted]:
    """Delete the file of a capture."""
    return Call("DELETE", _capture_path(capture_id), parse_as(Deleted))


def _capture_path(capture_id: str) -> str:
    return f"/v1/captures/{quote(capture_id.rpartition('/')[2], safe='')}"


class SteeringVectors:
    """Steering vectors; available as `client.steering_vectors`."""

    def __init__(self, client: Sender) -> None:
        self._client = client

    def create(self, name: str, positive: Sequence[Any], negative: Sequence[Any], **options: Any) -> SteeringVector:
        """Compute the next version of a vector from contrasting texts or conversations.

        Args:
            name: Its name; the version is counted up.
            positive: Prompts with the property.
            negative: The opposite.
            options: `model`, `layers`, `tokens`, as `fovea.api.steering.SteeringVectorRequest` describes them.
        """
        return self._client.send(create(name, positive, negative, **options))

    def list(self) -> list[SteeringVector]:
        """List all vectors, newest first."""
        return self._client.send(fetch_all())

    def get(self, name: str, *, values: bool = False) -> SteeringVector:
        """Get a vector by `name@version`, or the newest of a name; with `values` its numbers, too."""
        return self._client.send(fetch(name, values=values))

    def delete(self, name: str) -> SteeringVectorDeleted:
        """Delete `name@version`, or all versions of a name."""
        return self._client.send(delete(name))


class AsyncSteeringVectors:
    """Steering vectors; available as `client.steering_vectors` of an `AsyncClient`."""

    def __init__(self, client: AsyncSender) -> None:
        self._client = client

    async def create(
        self, name: str, positive: Sequence[Any], negative: Sequence[Any], **options: Any
    ) -> SteeringVector:
        """Compute the next version of a vector; see `SteeringVectors.create`."""
        return await self._client.send(create(name, positive, negative, **options))

    async def list(self) -> list[SteeringVector]:
        """List all vectors, newest first."""
        return await self._client.send(fetch_all())

    async def get(self, name: str, *, values: bool = False) -> SteeringVector:
        """Get a vector by `name@version`, or the newest of a name; with `values` its numbers, too."""
        return await self._client.send(fetch(name, values=values))

    async def delete(self, name: str) -> SteeringVectorDeleted:
        """Delete `name@version`, or all versions of a name."""
        return await self._client.send(delete(name))


class Captures:
    """Files of captured activations: those with `keep: true`, and large ones; available as `client.captures`."""

    def __init__(self, client: Sender) -> None:
        self._client = client

    def get(self, capture_id: str) -> bytes:
        """Get the NPZ file of a capture by its `id` or `url`; `numpy.load(io.BytesIO(…))` reads it."""
        return self._client.send(capture(capture_id))

    def delete(self, capture_id: str) -> Deleted:
        """Delete the file of a capture."""
        return self._client.send(delete_capture(capture_id))


class AsyncCaptures:
    """Files of captured activations; available as `client.captures` of an `AsyncClient`."""

    def __init__(self, client: AsyncSender) -> None:
        self._client = client

    async def get(self, capture_id: str) -> bytes:
        """Get the NPZ file of a capture; see `Captures.get`."""
        return await self._client.send(capture(capture_id))

    async def delete(self, capture_id: str) -> Deleted:
        """Delete the file of a capture."""
        return await self._client.send(delete_capture(capture_id))
