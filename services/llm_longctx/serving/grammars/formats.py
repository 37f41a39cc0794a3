"""From a request's `response_format` or `structured_outputs` to the source of its grammar. Knows no tokens."""

import json
from typing import Any

from fovea.api.structured import ResponseFormat, StructuredOutputs
from fovea.api.text import GenerationOptions
from fovea.errors import InvalidOption
from services.llm_longctx.serving.grammars.sources import (
    FREE_WHITESPACE,
    choice_source,
    find_unenforced,
    json_source,
    lark_source,
    regex_source,
)
from services.llm_longctx.serving.grammars.structural_tags import read_structural_tag, tags_source

GrammarSource = tuple[str, str]
"""A grammar in llguidance's Lark, and the field of the request that it came from."""

_ANY_OBJECT = {"type": "object"}


def find_grammar_source(options: GenerationOptions) -> GrammarSource | None:
    """The grammar that a request asks for; None where its answer is free.

    Raises InvalidOption: Two forms at once, one that is incomplete, or one that can't be enforced.
    """
    response, structured = options.response_format, options.structured_outputs
    if structured is not None and response is not None and response.type != "text":
        raise InvalidOption("Give either response_format or structured_outputs.", field="structured_outputs")
    if structured is not None:
        return _structured_source(structured), "structured_outputs"
    source = None if response is None else _response_source(response, "response_format")
    return None if source is None else (source, "response_format")


def asks_for_form(options: GenerationOptions) -> bool:
    """Whether the answer is JSON or one of several texts, so that it holds neither thoughts nor calls."""
    if (given := options.structured_outputs) is not None:
        return given.json_ is not None or bool(given.json_object or given.choice)
    return options.response_format is not None and options.response_format.type.startswith(("json_", "choice"))


def may_hold(options: GenerationOptions, text: str) -> bool:
    """Whether an answer may hold a text, as far as the request's expression or grammar, if it has one, names it."""
    given = options.structured_outputs
    source = None if given is None else given.regex or given.grammar
    return source is None or text in source.replace("\\", "")


def find_unenforced_keywords(options: GenerationOptions) -> tuple[str, ...]:
    """Keywords of the request's schema that are left to the model, because the schema is not strict."""
    given = options.response_format.json_schema if options.response_format is not None else None
    if given is None or given.strict or given.schema_ is None:
        return ()
    return find_unenforced(given.schema_)


def _response_source(response: ResponseFormat, field: str) -> str | None:
    match response.type:
        case "text":
            return None
        case "json_object":
            return json_source(_ANY_OBJECT, field)
        case "choice":
            return choice_source(response.choices or (), field)
        case "structural_tag":
            return tags_source(response, field)
    if response.json_schema is None:
        raise InvalidOption("response_format json_schema needs json_schema, with the schema in it.", field=field)
    schema = response.json_schema.schema_
    return json_source(_ANY_OBJECT if schema is None else schema, field, is_strict=bool(response.json_schema.strict))


def _structured_source(given: StructuredOutputs) -> str:
    """The source of the one form that is given."""
    field = "structured_outputs"
    forms = {"json", "json_object", "regex", "choice", "grammar", "structural_tag"}
    named = given.model_dump(by_alias=True, exclude_none=True, include={"json_", *forms})
    if len(named) != 1 or given.json_object is False:
        raise InvalidOption(f"structured_outputs takes one of {', '.join(sorted(forms))}.", field=field)
    if given.regex is not None:
        return regex_source(given.regex, field)
    if given.choice is not None:
        return choice_source(given.choice, field)
    if given.structural_tag is not None:
        return tags_source(read_structural_tag(given.structural_tag, field), field)
    if given.grammar is not None:
        return lark_source(given.grammar, field)
    space = None if given.disable_any_whitespace else given.whitespace_pattern or FREE_WHITESPACE
    schema = _ANY_OBJECT if given.json_ is None else _read_schema(given.json_, field)
    return json_source(schema, field, whitespace=space)


def _read_schema(given: dict[str, Any] | bool | str, field: str) -> dict[str, Any] | bool:
    if not isinstance(given, str):
        return given
    try:
        found = json.loads(given)
    except (ValueError, RecursionError) as error:
        raise InvalidOption("structured_outputs.json is a text that is not JSON.", field=field) from error
    if not isinstance(found, dict | bool):
        raise InvalidOption("structured_outputs.json must be a JSON Schema: an object.", field=field)
    return found
