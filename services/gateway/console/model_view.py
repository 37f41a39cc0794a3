"""What a page says about a model: the Card's facts in words and in the order of interest. Knows no HTML, no HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fovea.headline_metric import pick_headline
from services.gateway.console.schema_forms import Field
from shared.api.model import ModelEntry, sparsity_in_words

__all__ = [
    "PAGES",
    "describe_model",
    "describe_type",
    "find_page",
    "group_by_service",
    "list_facts",
    "list_sibling_tasks",
]

PAGES = {task: f"/console/{task}" for task in ("segment", "detect", "restore", "chat")}
"""Tasks with a page of their own; every other task has the generic one."""


def find_page(task: str, model: str) -> str | None:
    """The page on which a model can be tried; None for tensors alone (a model on a Triton server, for example)."""
    if task == "infer":
        return None
    return f"{PAGES.get(task, f'/console/run/{task}')}?model={model}"


def list_sibling_tasks(entries: Sequence[ModelEntry], service: str) -> list[tuple[str, str]]:
    """The tasks of a service and their pages, in the order of its models."""
    tasks = dict.fromkeys(entry.task for entry in entries if entry.service == service and entry.task != "infer")
    return [(task, PAGES.get(task, f"/console/run/{task}")) for task in tasks]


def describe_model(entry: ModelEntry | Mapping[str, Any]) -> dict[str, Any]:
    """A model as templates use it: its facts, its headline, the page to try it on, and an id that fits into HTML."""
    facts = entry.model_dump() if isinstance(entry, ModelEntry) else dict(entry)
    slug = "".join(c if c.isalnum() else "-" for c in facts["id"])
    told = pick_headline(facts.get("metrics") or ())
    return {**facts, "open": find_page(facts["task"], facts["id"]), "slug": slug, "headline": told}


def group_by_service(entries: Sequence[ModelEntry]) -> list[dict[str, Any]]:
    """Services in name order with their models: `{name, models}`."""
    services: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        services.setdefault(entry.service, []).append(describe_model(entry))
    return [{"name": name, "models": models} for name, models in sorted(services.items())]


def list_facts(card: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Facts of a card as (name, value, remark), without those that the model has not got."""
    yield "Task", card["task"], ""
    if card.get("variant"):
        others = [v for v in card.get("variants", ()) if v != card["variant"]]
        yield "Variant", card["variant"], f"also exists: {', '.join(others)}" if others else ""
    if card.get("version"):
        yield "Version", str(card["version"]), ""
    if card.get("parameters"):
        yield "Parameters", _size(card["parameters"]), f"{card['parameters']:,}"
    yield from _limits(card.get("limits") or {})
    if card.get("media_types"):
        yield "Answers as", ", ".join(card["media_types"]), ""
    if card.get("sparsity"):
        yield "Sparsity", sparsity_in_words(card["sparsity"]), "measured; a claim that is linted"
    if card.get("licence"):
        yield "Licence", card["licence"], ""
    weights = card.get("weights")
    yield ("Weights", weights[:16] + "…", "sha256") if weights else ("Weights", "random", "no trained weights")


def describe_type(field: Field) -> str:
    """The type of an option for people."""
    if field.choices:
        several = "some of " if field.kind == "choices" else ""
        return several + " · ".join(str(choice) for choice in field.choices)
    kind = {"switch": "yes or no", "prose": "text", "json": "JSON", "list": f"list of {field.items}s"}.get(
        field.kind, field.kind
    )
    low, high = (("" if bound is None else f"{bound:g}") for bound in (field.low, field.high))
    if low and high:
        return f"{kind}, {low} to {high}"
    return f"{kind}, from {low}" if low else f"{kind}, up to {high}" if high else kind


def _limits(limits: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    units = {"side": "pixels", "tokens": "tokens", "bytes": "bytes", "pixels": "pixels", "s": "seconds"}
    for name, value in limits.items():
        if value is None:
            continue
        head, _, unit = name.rpartition("_")
        words = (head if unit == "s" else name).replace("_", " ").capitalize()
        yield words, f"{value:,}" if isinstance(value, int) else f"{value:g}", units.get(unit, "")


def _size(count: int) -> str:
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return str(count)
