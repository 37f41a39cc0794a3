"""View of a model: the facts of its card as text, in the order in which a page shows them. Renders no HTML."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fovea.api.model import ModelEntry, pick_headline, sort_tasks, sparsity_in_words, title_task
from services.gateway.console.navigation import find_page
from services.gateway.console.schema_forms import Field


def find_model_page(task: str, model: str) -> str | None:
    """Find the page on which a model can be tried; None for a model that takes only tensors, as on a Triton server."""
    return None if task == "infer" else f"{find_page(task)}?model={model}"


def list_sibling_tasks(entries: Sequence[ModelEntry], service: str) -> list[tuple[str, str, str]]:
    """List the tasks of a service as (task, title, page), known tasks first."""
    tasks = sort_tasks(entry.task for entry in entries if entry.service == service and entry.task != "infer")
    return [(task, title_task(task), find_page(task)) for task in tasks]


def describe_model(entry: ModelEntry | Mapping[str, Any]) -> dict[str, Any]:
    """Describe a model for templates: its facts, title of its task, headline, page to try it on, and id for HTML."""
    facts = entry.model_dump() if isinstance(entry, ModelEntry) else dict(entry)
    slug = "".join(c if c.isalnum() else "-" for c in facts["id"])
    return {
        **facts,
        "task_title": title_task(facts["task"]),
        "open": find_model_page(facts["task"], facts["id"]),
        "slug": slug,
        "headline": pick_headline(facts.get("metrics") or ()),
    }


def group_by_service(entries: Sequence[ModelEntry]) -> list[dict[str, Any]]:
    """Group models by service, in name order: `{name, models}`."""
    services: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        services.setdefault(entry.service, []).append(describe_model(entry))
    return [{"name": name, "models": models} for name, models in sorted(services.items())]


def list_facts(card: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the facts of a card as (name, value, note), without those that the model does not have."""
    yield "Task", title_task(card["task"]), ""
    if card.get("variant"):
        others = [v for v in card.get("variants", ()) if v != card["variant"]]
        yield "Variant", card["variant"], f"also available: {', '.join(others)}" if others else ""
    if card.get("version"):
        yield "Version", str(card["version"]), ""
    if card.get("parameters"):
        yield "Parameters", _format_count(card["parameters"]), f"{card['parameters']:,}"
    yield from _list_limits(card.get("limits") or {}, with_images=_takes_images(card))
    if card.get("media_types"):
        yield "Media types", ", ".join(card["media_types"]), ""
    if card.get("sparsity"):
        yield "Sparsity", sparsity_in_words(card["sparsity"]), "measured and checked"
    if card.get("licence"):
        yield "Licence", card["licence"], ""
    weights = card.get("weights")
    yield ("Weights", weights[:16] + "…", "sha256") if weights else ("Weights", "random", "no trained weights")


_FAR = 2**31
"""A bound beyond this is that of a machine's integers, not of the option."""


def describe_type(field: Field) -> str:
    """Describe the type of an option."""
    if field.choices:
        several = "any of " if field.kind == "choices" else ""
        return several + " · ".join(str(choice) for choice in field.choices)
    kind = {"switch": "yes or no", "prose": "text", "json": "JSON", "list": f"list of {field.items}s"}.get(
        field.kind, field.kind
    )
    low, high = (("" if bound is None or abs(bound) > _FAR else f"{bound:g}") for bound in (field.low, field.high))
    if low and high:
        return f"{kind}, {low} to {high}"
    return f"{kind}, from {low}" if low else f"{kind}, up to {high}" if high else kind


def _takes_images(card: Mapping[str, Any]) -> bool:
    """Whether a request of the model can have an image; unknown requests, such as tensors, can."""
    return not card.get("schema") or "contentMediaType" in json.dumps(card["schema"])


def _list_limits(limits: Mapping[str, Any], *, with_images: bool) -> Iterator[tuple[str, str, str]]:
    units = {"side": "pixels", "tokens": "tokens", "bytes": "bytes", "pixels": "pixels", "s": "seconds"}
    for name, value in limits.items():
        is_of_images = any(word in name for word in ("side", "pixel", "image", "picture"))
        if value is None or (is_of_images and not with_images):
            continue
        head, _, unit = name.rpartition("_")
        words = (head if unit == "s" else name).replace("_", " ").capitalize()
        yield words, f"{value:,}" if isinstance(value, int) else f"{value:g}", units.get(unit, "")


def _format_count(count: int) -> str:
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return str(count)
