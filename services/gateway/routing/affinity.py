"""Affinity key: what a request needs that some replica may hold already: a session, a document, a prompt's beginning.

Read from the path and from the first bytes of a JSON body, without parsing it. Keys of different tenants and models
never meet. Knows nothing about replicas.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from services.gateway.http.request_context import RequestContext
from services.gateway.routing.json_peek import TooManyTokens, iterate_fields
from services.gateway.routing.route_table import Route

BLOCK_BYTES = 512
"""Bytes of a prompt, as it is written in JSON, that are hashed at a time: about 128 tokens of English."""

MAX_BLOCKS = 64
"""Blocks of a prompt that are looked at."""

HOME_BLOCKS = 4
"""Blocks that decide where a prompt goes that no replica is known to hold; enough to tell most system prompts apart."""

MAX_TOKENS = 20_000
"""JSON tokens that are looked at: some milliseconds. A body of more is sent to the least loaded replica."""

MAX_ID_BYTES = 256

_HELD = ("session_id", "document_id", "previous_response_id")
"""Names of ids in a body, and of their variables in a path."""

_PROMPTS = tuple(json.dumps(name).encode() for name in ("messages", "prompt", "input"))
_MODEL = b'"model"'
_ID_NAMES = tuple(json.dumps(name).encode() for name in _HELD)


@dataclass(frozen=True, slots=True)
class AffinityKey:
    """State that a replica may hold, as hashes of growing prefixes of a prompt; one hash for a session or a document.

    Attributes:
        chain: Each hash stands for its block and all before it.
        home: The hash that decides where it goes while nobody is known to hold it.
        is_state: Whether it stands for a session, a document or a stored response.
    """

    chain: tuple[bytes, ...]
    home: bytes
    is_state: bool = False


def held_key(tenant: str, name: str) -> AffinityKey:
    """The key of a session or a document by its id."""
    digest = _hash(tenant.encode(), name.encode())
    return AffinityKey((digest,), digest, is_state=True)


def find_affinity_key(ctx: RequestContext, route: Route, head: bytes) -> AffinityKey | None:
    """The key of a request; None where it names nothing and its prompt is shorter than a block.

    The label of its route names variables of the path; `head` is the body, or as much of it as has arrived.
    """
    if (name := _find_id_in_path(route.label, ctx.path)) is not None:
        return held_key(ctx.caller.tenant, name)
    is_json = b"json" in ctx.headers.get(b"content-type", b"").lower()
    if not is_json or b"content-encoding" in ctx.headers:
        return None
    return _find_key_in_body(ctx.caller.tenant, head)


def _find_id_in_path(label: str, path: str) -> str | None:
    """The value of the path's variable that is called as an id in a body."""
    for part, value in zip(label.split("/"), path.split("/"), strict=False):
        if part[1:-1] in _HELD and part.startswith("{"):
            return value
    return None


def _find_key_in_body(tenant: str, head: bytes) -> AffinityKey | None:
    model, prompt = b"", b""
    for name, value in _iterate_values(head):
        if name in _ID_NAMES and (text := _unquote(value)):
            return held_key(tenant, text)
        if name == _MODEL:
            model = value[:MAX_ID_BYTES].strip(b" \t\r\n,}")
        elif name in _PROMPTS and not prompt:
            prompt = value[: MAX_BLOCKS * BLOCK_BYTES]
    count = len(prompt) // BLOCK_BYTES
    if not count:
        return None
    digest, chain = _hash(tenant.encode(), model), []
    for block in range(count):
        digest = _hash(digest, prompt[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
        chain.append(digest)
    return AffinityKey(tuple(chain), chain[min(count, HOME_BLOCKS) - 1])


def _iterate_values(head: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names of the top-level fields, and the first bytes from each value to the next."""
    try:
        fields = list(iterate_fields(head, MAX_TOKENS))
    except TooManyTokens:
        return
    for (name, begin), (following, end) in pairwise([*fields, (b"", len(head))]):
        yield name, head[begin : min(end - len(following), begin + MAX_BLOCKS * BLOCK_BYTES)].lstrip()


def _unquote(value: bytes) -> str | None:
    """The text of a quoted value with what follows it; None for anything else, such as null."""
    quoted, quote, _ = value[1 : MAX_ID_BYTES + 1].partition(b'"')
    return quoted.decode("latin-1") if value.startswith(b'"') and quote else None


def _hash(key: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16, key=key[:64]).digest()
