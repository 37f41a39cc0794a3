"""Options of a task's page, from a model's card: form fields, first questions and downloads. Renders no HTML."""

from collections.abc import Sequence
from typing import Any

from services.gateway.console.schema_forms import Field, build_fields

_DEFAULT_STARTERS = (
    "What is attention, in two sentences?",
    "Write a haiku about retinas.",
    "Name three uses of a mask.",
)

_OWN_CONTROLS = {
    task: frozenset(names.split())
    for task, names in {
        "chat": "model messages stream stream_options n user tools tool_choice strict logprobs top_logprobs logit_bias "
        "response_format max_completion_tokens session_id document_id interventions capture",
        "segment": "model image include threshold",
        "detect": "model image include confidence iou labels stroke",
        "restore": "model image include picture",
        "classify": "model image",
    }.items()
}
"""Options of a request that a page has its own control for, or that make no sense on it."""

_DOWNLOAD_FORMATS = (
    ("Picture", "image/png", "boxes.png"), ("CSV", "text/csv", "csv"),
    ("COCO", "application/vnd.coco+json", "coco.json"), ("YOLO", "text/plain", "txt"),
    ("Crops", "application/zip", "crops.zip"), ("JSON", "application/json", "json"),
)  # fmt: skip
"""Download formats of detections: name, media type, suffix."""

_BUDGET_FIELDS = frozenset({"plan", "kv_ratio"})
"""Memory options of a request, whatever its attention method."""

_FIRST_OPTIONS = ("max_tokens", "temperature", "top_p", "seed")
"""Options that come first, wherever the schema has them."""


def build_starters(example: dict[str, Any]) -> tuple[str, ...]:
    """Build the suggested questions: the model's example, which may be all it was trained for, or the default ones."""
    contents = [message.get("content") for message in example.get("messages") or () if isinstance(message, dict)]
    texts = [content for content in contents if isinstance(content, str)]
    return (" ".join(texts),) if texts else _DEFAULT_STARTERS


def build_options(card: dict[str, Any], task: str, spec: dict[str, Any] | None = None) -> list[Field]:
    """Build the fields of a task's form, required ones first; `spec` replaces the schema's defaults."""
    without = _OWN_CONTROLS.get(task, frozenset({"model"})) | ({"longctx"} if takes_methods(card) else set())
    found = build_fields(card.get("schema") or {}, without=without, values=spec, fallbacks=read_fallbacks(card))
    return sorted(
        found,
        key=lambda field: (
            not field.required,
            _FIRST_OPTIONS.index(field.name) if field.name in _FIRST_OPTIONS else 99,
        ),
    )


def takes_methods(card: dict[str, Any]) -> bool:
    """Whether a model can be run under an attention method."""
    return bool((card.get("details") or {}).get("methods"))


def build_method_forms(card: dict[str, Any], found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Build a form for each attention method: its settings, and the memory budget of the request's schema."""
    root = card.get("schema") or {}
    options = root.get("$defs", {}).get("LongctxOptions", {})
    other = frozenset(options.get("properties", {})) - _BUDGET_FIELDS
    budget = build_fields({**options, "$defs": root.get("$defs", {})}, without=other)
    return [
        {"name": one["name"], "summary": one["summary"], "fields": [*build_fields(one["knobs"]), *budget]}
        for one in found
    ]


def list_downloads(card: dict[str, Any]) -> list[tuple[str, str, str]]:
    """List the download formats that a model offers."""
    return [form for form in _DOWNLOAD_FORMATS if form[1] in (card.get("media_types") or ())]


def read_fallbacks(card: dict[str, Any]) -> dict[str, Any]:
    """Read what a model uses where a request leaves an option out: its own defaults, and how it samples."""
    longest = {"max_tokens": "as many as fit"} if card.get("task") == "chat" else {}
    return {**longest, **(card.get("sampling") or {}), **((card.get("details") or {}).get("defaults") or {})}


def read_default(card: dict[str, Any], option: str, otherwise: float) -> Any:
    """Read the default of an option from the request's schema."""
    default = (card.get("schema") or {}).get("properties", {}).get(option, {}).get("default")
    return otherwise if default is None else default
