"""Grammar sources: JSON Schemas, regular expressions, choices and context-free grammars, written in llguidance's Lark.

Refuses what would take long to compile or could never end. Knows no tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, grammar_from

from services.llm_longctx.serving.grammars.json_schema import check_keywords, check_schema, close_objects
from shared.errors import InvalidOption

MAX_SOURCE_BYTES = 128 * 1024
"""Longest grammar; one of that size compiles in about a second."""

MAX_CHOICES = 1000
"""Texts of which one is answered."""

FREE_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,32}"
"""White space in a row: a model that likes it would fill its answer with nothing else."""

HEADER = '%llguidance {"no_forcing": true}\n'
"""Begins each grammar: every way to spell what must come is allowed, so that the draws are the model's own."""

_HEADED = re.compile(r"^\s*%llguidance\b[^\n]*\n")


def json_source(
    schema: Mapping[str, Any] | bool, field: str, *, is_strict: bool = True, whitespace: str | None = FREE_WHITESPACE
) -> str:
    """The grammar of the JSON texts that meet a schema; its objects are closed unless they say otherwise.

    Args:
        schema: The schema.
        field: The request's field that holds it.
        is_strict: Refuse keywords that can't be enforced, instead of leaving them out.
        whitespace: What may stand between tokens of JSON, as a regular expression; None for nothing.

    Raises:
        InvalidOption: The schema is too large, refers to nothing, or only endless values meet it.
    """
    return f"{HEADER}start: {json_expression(schema, field, is_strict=is_strict, whitespace=whitespace)}"


def json_expression(
    schema: Mapping[str, Any] | bool, field: str, *, is_strict: bool = True, whitespace: str | None = FREE_WHITESPACE
) -> str:
    """As `json_source`, as a part of another grammar's rule."""
    _check_size(_to_json(schema, field), field)  # first: everything after it takes time by the schema's size
    check_schema(schema, field)
    if is_strict:
        check_keywords(schema, field)
    options: dict[str, Any] = {"lenient": not is_strict}
    options |= {"whitespace_flexible": False} if whitespace is None else {"whitespace_pattern": whitespace}
    plain = {} if schema is True else {"not": {}} if schema is False else close_objects(schema)
    text = json.dumps({**plain, "x-guidance": options})
    return f"%json {_check_size(text, field)}"


def regex_source(pattern: str, field: str) -> str:
    """The grammar of the texts that a regular expression matches whole.

    Raises:
        InvalidOption: It is too long.
    """
    document = json.loads(LLMatcher.grammar_from_regex(_check_size(pattern, field)))
    return HEADER + str(document["grammars"][0]["lark_grammar"])


def choice_source(texts: Sequence[str], field: str) -> str:
    """The grammar of one of several texts.

    Raises:
        InvalidOption: There are none, too many, or an empty one.
    """
    if not 0 < len(texts) <= MAX_CHOICES or not all(texts):
        detail = f"{field} needs 1 to {MAX_CHOICES} texts, none of them empty."
        raise InvalidOption(detail, field=field)
    alternatives = " | ".join(json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(texts))
    return f"{HEADER}start: {_check_size(alternatives, field)}"


def lark_source(grammar: str, field: str) -> str:
    """A caller's context-free grammar, in Lark's form or GBNF.

    Raises:
        InvalidOption: It is too long, or neither form.
    """
    try:
        found = str(grammar_from("grammar", _check_size(grammar, field)))
    except Exception as error:  # the converter raises what it happens to meet
        detail = f"{field} is no grammar: {error}."
        raise InvalidOption(detail, hint="Write it in Lark's form or in GBNF.", field=field) from error
    return HEADER + _HEADED.sub("", found)


def _to_json(schema: Mapping[str, Any] | bool, field: str) -> str:
    try:
        return json.dumps(schema)
    except RecursionError as error:
        raise InvalidOption(f"{field} is nested too deeply.", hint="Define parts in $defs.", field=field) from error


def _check_size(text: str, field: str) -> str:
    if (size := len(text.encode("utf-8", "surrogatepass"))) > MAX_SOURCE_BYTES:
        detail = f"{field} has {size:,} bytes; {MAX_SOURCE_BYTES:,} are taken."
        raise InvalidOption(detail, hint="Describe less, or check the rest yourself.", field=field)
    return text
