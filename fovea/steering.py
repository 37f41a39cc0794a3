"""Steering vectors of a gateway, computed from contrasting prompts, and files of captured activations.

A chat uses a vector by name: `client.chat("…", interventions=[{"vector": "calm@1"}])`.
"""

from collections.abc import Sequence
from typing import Any

from fovea.api.sessions import Deleted
from fovea.api.steering import SteeringVector, SteeringVectorDeleted, SteeringVectorList
from fovea.call import AsyncPart, Call, Part, Sends, parse_as, quote_id, read_bytes

_PATH = "/v1/steering-vectors"


def create_vector(name: str, positive: Sequence[Any], negative: Sequence[Any], **options: Any) -> Call[SteeringVector]:
    """Compute the next version of a vector from contrasting texts or conversations.

    Args:
        name: Its name; the version is counted up.
        positive: Prompts with the property.
        negative: The opposite.
        options: `model`, `layers`, `tokens`, as `fovea.api.steering.SteeringVectorRequest` describes them.
    """
    sides = {"positive": positive, "negative": negative}
    body = {"name": name} | {side: [one] if isinstance(one, str) else list(one) for side, one in sides.items()}
    given = {key: value for key, value in options.items() if value is not None}
    return Call("POST", _PATH, parse_as(SteeringVector), json=body | given)


def get_vector(name: str, *, values: bool = False) -> Call[SteeringVector]:
    """Get a vector by `name@version`, or the newest of a name; with `values` its numbers, too."""
    params = {"values": "true" if values else None}
    return Call("GET", f"{_PATH}/{quote_id(name)}", parse_as(SteeringVector), params=params)


def list_vectors() -> Call[list[SteeringVector]]:
    """List all vectors, newest first."""
    return Call("GET", _PATH, lambda answer: parse_as(SteeringVectorList)(answer).data)


def delete_vector(name: str) -> Call[SteeringVectorDeleted]:
    """Delete `name@version`, or all versions of a name."""
    return Call("DELETE", f"{_PATH}/{quote_id(name)}", parse_as(SteeringVectorDeleted))


def get_capture(capture_id: str) -> Call[bytes]:
    """Get the NPZ file of a capture by its `id` or `url`; `numpy.load(io.BytesIO(…))` reads it."""
    return Call("GET", _capture_path(capture_id), read_bytes)


def delete_capture(capture_id: str) -> Call[Deleted]:
    """Delete the file of a capture."""
    return Call("DELETE", _capture_path(capture_id), parse_as(Deleted))


def _capture_path(capture_id: str) -> str:
    return f"/v1/captures/{quote_id(capture_id.rpartition('/')[2])}"


class _Methods:
    create = Sends(create_vector)
    list = Sends(list_vectors)
    get = Sends(get_vector)
    delete = Sends(delete_vector)


class SteeringVectors(_Methods, Part):
    """Steering vectors; available as `client.steering_vectors`."""


class AsyncSteeringVectors(_Methods, AsyncPart):
    """Steering vectors; available as `client.steering_vectors` of an `AsyncClient`."""


class _CaptureMethods:
    get = Sends(get_capture)
    delete = Sends(delete_capture)


class Captures(_CaptureMethods, Part):
    """Files of captured activations: those with `keep: true`, and large ones; available as `client.captures`."""


class AsyncCaptures(_CaptureMethods, AsyncPart):
    """Files of captured activations; available as `client.captures` of an `AsyncClient`."""
