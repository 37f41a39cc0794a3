"""Usage of a request: what it consumed, as replicas and answers tell it, and the record that a tenant is shown."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from typing import Any, Final

from pydantic import BaseModel, Field

USAGE_HEADER: Final = "x-fovea-usage"
"""Response header of a replica: what the request consumed there, as a JSON object of numbers, and the `model` that
answered. Callers don't get it."""

USAGE_FIELDS: Final = (
    "requests", "tokens_in", "tokens_out", "cached_tokens", "kv_byte_seconds", "pictures", "cpu_seconds",
)  # fmt: skip

_COMMENT: Final = re.compile(rb"(?<=\n): usage \{[^\n]*\n\n")
"""Comment of a replica's stream: what the request has consumed so far, as in the header. Callers don't get it."""
_BEGUN_COMMENT: Final = re.compile(rb"(?<=\n): ?u?s?a?g?e? ?(?:\{[^\n]*\n?)?\Z")

_MODEL: Final = re.compile(rb'"model"\s*:\s*"([^"\\]{1,200})"')
_PIECE: Final = re.compile(rb'"choices": ?\[\{|\.delta"|"content_block_delta"')
_MAX_EVENT_BYTES: Final = 2**16


class UsageRecord(BaseModel):
    """One tenant's use of one model on one day (UTC)."""

    day: date
    tenant: str
    model: str = Field(description="Empty where no model was named: jobs that failed, documents, lists.")
    requests: int = 0
    tokens_in: int = Field(0, description="Tokens of prompts.")
    tokens_out: int = Field(0, description="Tokens of answers; for a stream that broke off, its events.")
    cached_tokens: int = Field(0, description="Tokens of prompts that came from the prefix cache.")
    kv_byte_seconds: float = Field(0.0, description="Bytes of the KV cache times seconds of the request.")
    pictures: int = 0
    cpu_seconds: float = Field(0.0, description="Processor time of the replica while the request's batch ran.")


class UsageList(BaseModel):
    """Usage records, newest day first."""

    usage: list[UsageRecord]


class LimitUse(BaseModel):
    """How much of a limit is used in the window that is open now."""

    unit: str = Field(description="Unit of the count, such as `requests per minute`.")
    limit: int
    used: int
    resets_in_s: float = Field(description="Seconds until the window ends.")


class CallerLimits(BaseModel):
    """The caller as the gateway knows it."""

    tenant: str
    key: str = Field(description="Id of its key; empty where none is needed.")
    scopes: list[str]
    limits: list[LimitUse] = Field(description="Empty where nothing is limited.")


def find_model(body: bytes) -> str:
    """The model that an answer names near its beginning; empty where it names none."""
    return found[1].decode("utf-8", "replace") if (found := _MODEL.search(body, 0, 4096)) else ""


def read_header(text: str | None) -> dict[str, float]:
    """The numbers of `USAGE_HEADER`; anything else counts as nothing."""
    with suppress(ValueError):
        return _only_numbers(json.loads(text or "{}"))
    return {}


class UsageScanner:
    """Collects the tokens of an answer in OpenAI's form while it passes: one JSON document, or events of a stream."""

    def __init__(self, *, is_stream: bool, told: Mapping[str, float] | None = None) -> None:
        """Begin an answer; what its replica states apart, in its header (`told`) or in comments of a stream, wins."""
        self.model, self._told = "", told or {}
        self._is_stream = is_stream
        self._tail, self._events = b"", 0
        self._held = b"\n"  # the last byte that was returned, and behind it what may begin a comment
        self._usage: Mapping[str, Any] = {}

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes, of a document all at once; returns what the caller gets: a stream without comments."""
        self.model = self.model or find_model(self._tail + chunk)
        if not self._is_stream:
            self._read_usage(chunk)
            return chunk
        *lines, self._tail = (self._tail + chunk).split(b"\n")
        self._tail = self._tail[-_MAX_EVENT_BYTES:]
        for line in lines:
            if line.startswith(b": usage {"):
                self._told = read_header(line[8:].decode("utf-8", "replace"))
            elif line.startswith(b"data: {"):
                self._events += _PIECE.search(line) is not None
                if b'"usage"' in line:
                    self._read_usage(line[6:])
        text = _COMMENT.sub(b"", self._held + chunk)
        end = begun.start() if (begun := _BEGUN_COMMENT.search(text)) else len(text)
        self._held = text[end - 1 :]
        return text[1:end]

    def sum_up(self, seconds: float) -> dict[str, float]:
        """Tokens and KV byte-seconds of an answer that took `seconds`."""
        usage = self._usage
        parts = (usage.get(name) for name in ("prompt_tokens_details", "longctx"))
        details, longctx = (part if isinstance(part, Mapping) else {} for part in parts)
        cached = details.get("cached_tokens") or usage.get("cache_read_input_tokens") or longctx.get("cached_tokens")
        found = {
            # An answer without tokens of its own, such as a rerank, states only their total.
            "tokens_in": usage.get("prompt_tokens", usage.get("input_tokens", usage.get("total_tokens", 0))),
            "tokens_out": usage.get("completion_tokens", usage.get("output_tokens") or self._events),
            "cached_tokens": cached or 0,
            "kv_byte_seconds": (longctx.get("kv_bytes") or 0) * seconds,
        }
        known = _only_numbers(found)
        if "cache_read_input_tokens" in usage:  # Anthropic's input tokens leave these out
            known["tokens_in"] = known.get("tokens_in", 0) + known.get("cached_tokens", 0)
        return {**known, **self._told}

    def _read_usage(self, document: bytes) -> None:
        with suppress(ValueError):  # it has none, or one that was cut
            text = document[document.rindex(b'"usage"') + 7 :].decode("utf-8", "replace").lstrip(" :")
            found, _ = json.JSONDecoder().raw_decode(text)
            self._usage = found if isinstance(found, Mapping) else self._usage


def _only_numbers(document: object) -> dict[str, float]:
    found = document.items() if isinstance(document, Mapping) else ()
    return {k: float(v) for k, v in found if k in USAGE_FIELDS and type(v) in {int, float} and v >= 0}
