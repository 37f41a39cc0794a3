"""Structural tags: free text whose parts between tags meet a schema, written in llguidance's Lark. Knows no tokens."""

import json
from collections.abc import Sequence

from pydantic import ValidationError

from fovea.api.structured import ResponseFormat, TagStructure
from fovea.errors import InvalidOption
from services.llm_longctx.serving.grammars.sources import HEADER, json_expression
from shared.validation_errors import list_errors


def tags_source(given: ResponseFormat, field: str) -> str:
    """The grammar of texts in which each trigger begins a tag whose content meets its schema.

    Raises InvalidOption: No structures or triggers, a structure that no trigger begins, or a schema that is refused.
    """
    structures, triggers = given.structures or (), list(dict.fromkeys(given.triggers or ()))
    if not structures or not triggers:
        detail = f"{field} of type structural_tag needs structures and triggers."
        raise InvalidOption(detail, hint="The form with `format` is not served.", field=field)
    for one in structures:
        if not any(one.begin.startswith(trigger) for trigger in triggers):
            raise InvalidOption(f"No trigger begins the structure {one.begin!r}.", field=field)
    rules = [f"trigger_{i}[lazy]: TEXT {json.dumps(text, ensure_ascii=False)}" for i, text in enumerate(triggers)]
    tags = [(i, rule) for i, text in enumerate(triggers) if (rule := _write_tags(text, structures, field))]
    rules += [f"tag_{i}: trigger_{i} ({rule})" for i, rule in tags]
    choice = " | ".join(f"tag_{i}" for i, _ in tags)
    return "\n".join([f"{HEADER}start: ({choice})* TEXT", r"TEXT: /(.|\n)*/", *rules])


def read_structural_tag(text: str, field: str) -> ResponseFormat:
    """The JSON text that vLLM's `structured_outputs.structural_tag` holds.

    Raises InvalidOption: It is not such a text.
    """
    try:
        return ResponseFormat.model_validate({**json.loads(text), "type": "structural_tag"})
    except (ValueError, TypeError, RecursionError) as error:
        reason = list_errors(error)[0]["msg"] if isinstance(error, ValidationError) else "it is not a JSON object"
        detail = f"{field}.structural_tag can't be read: {reason}."
        raise InvalidOption(detail, hint="It holds `structures` and `triggers`.", field=field) from error


def _write_tags(trigger: str, structures: Sequence[TagStructure], field: str) -> str:
    """Text allowed after a trigger."""
    found = []
    for one in structures:
        if one.begin.startswith(trigger):
            schema = json_expression(True if one.schema_ is None else one.schema_, field)
            around = (one.begin.removeprefix(trigger), one.end)
            begin, end = (json.dumps(text, ensure_ascii=False) if text else "" for text in around)
            found.append(f"{begin} {schema} {end}")
    return " | ".join(found)
