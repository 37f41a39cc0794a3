"""Model documentation: one page per served model, from its Card and its request schema."""

import json
import mimetypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fovea.api.model import sparsity_in_words
from shared.registry import Card, Servable, servables
from shared.registry.discovery import SERVICES
from shared.sparsity import SparsityClaim, lint

_BASE_URL = "http://127.0.0.1:8080"

_CHAT = {"messages": [{"role": "user", "content": "Hello"}]}

_INDEX = """# Models

Generated from the Cards; `make generate` rewrites it.

| model | service | task | what it does |
|---|---|---|---|
"""


def render_pages(folder: Path, complete: Callable[[Card], Card]) -> Iterator[tuple[Path, str]]:
    """Render every model's page, and the index. `complete` fills in what a Card learns only when it is loaded."""
    rows = []
    for service in SERVICES:
        for name, cls in servables(service).items():
            file = folder / f"{name.replace('/', '_')}.md"
            rows.append(f"| [{name}]({file.name}) | {service} | {cls.card.task} | {cls.card.summary} |")
            yield file, render_page(service, cls, complete(cls.card))
    yield folder / "README.md", _INDEX + "\n".join(rows) + "\n"


def render_page(service: str, cls: type[Servable[Any, Any]], card: Card) -> str:
    """Render the page of one model as Markdown."""
    parts = [
        f"# {card.name}",
        card.summary,
        _facts(service, card),
        _metrics(card),
        "## What you should know\n\n" + "\n".join(f"* {note}" for note in card.notes) if card.notes else "",
        _options(cls),
        _curl_example(cls),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(service: str, card: Card) -> str:
    paper = f"*{card.paper.title}*, {card.paper.venue} {card.paper.year}"
    rows = {
        "service": service,
        "task": card.task,
        "paper": f"[{paper}]({card.paper.url})" if card.paper.url else paper,
        "licence": card.licence,
        "variants": ", ".join(f"**{v}**" if v == card.variant else v for v in card.variants),
        "parameters": f"{card.parameters:,}" if card.parameters else "",
        "weights": f"sha256 `{card.weights}`" if card.weights else "",
        "limits": ", ".join(f"{k} {v}" for k, v in card.limits.model_dump(exclude_none=True).items()),
        "sparsity": _describe_sparsity(card.sparsity) if card.sparsity else "",
    }
    return "| fact | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in rows.items() if value)


def _describe_sparsity(claim: SparsityClaim) -> str:
    open_rules = ", ".join(finding.rule for finding in lint(claim))
    return sparsity_in_words(claim.model_dump()) + (f"; rules that are open: {open_rules}" if open_rules else "")


def _metrics(card: Card) -> str:
    if not card.metrics:
        return ""
    rows = []
    for m in card.metrics:
        note = f" ({m.note})" if m.note else ""
        rows.append(f"| {m.name} | {_number(m.ours, 'not measured')} | {_number(m.paper, '')} | {m.data}{note} |")
    return "## Measured\n\n| metric | ours | paper | on |\n|---|---|---|---|\n" + "\n".join(rows)


def _number(value: float | None, absent: str) -> str:
    return absent if value is None else f"{value:g}"


def _options(cls: type[Servable[Any, Any]]) -> str:
    fields = cls.In.model_json_schema().get("properties", {})
    defaults = {name: f"`{json.dumps(field['default'])}`" for name, field in fields.items() if "default" in field}
    rows = [f"| `{n}` | {_type(f)} | {defaults.get(n, '')} | {f.get('description', '')} |" for n, f in fields.items()]
    return "## Request\n\n| field | type | default | |\n|---|---|---|---|\n" + "\n".join(rows)


def _type(field: dict[str, Any]) -> str:
    if field.get("contentMediaType"):
        return "picture"
    if "enum" in field:
        return " · ".join(str(v) for v in field["enum"])
    kinds = [field] if "type" in field else field.get("anyOf", [])
    return " or ".join(
        str(k.get("type", k.get("$ref", "").rpartition("/")[2])) for k in kinds if k.get("type") != "null"
    )


def _curl_example(cls: type[Servable[Any, Any]]) -> str:
    """A call that works as it stands: a form where there is a picture to send, else the Card's example as JSON."""
    card, fields = cls.card, cls.In.model_json_schema().get("properties", {})
    pictures = [name for name, field in fields.items() if field.get("contentMediaType")]
    if pictures:
        form = f"curl {_BASE_URL}/v1/{card.task} -F {pictures[0]}=@picture.jpg -F model={card.name}"
        endings = [(media, mimetypes.guess_extension(media) or "") for media in cls.media_types()[:1]]
        lines = [form, *(f"{form} -H 'accept: {media}' -o out{ending}" for media, ending in endings)]
    else:
        path, body = ("chat/completions", _CHAT) if card.task == "chat" else (card.task, card.example)
        body_text = json.dumps({"model": card.name, **body}).replace("'", "\\u0027")  # a shell's quotes hold no quote
        lines = [f"curl {_BASE_URL}/v1/{path} -H 'content-type: application/json' \\", f"  -d '{body_text}'"]
    return "\n".join(["## Call it", "", "```bash", *lines, "```"])
