"""Grammar sources: JSON Schemas, regular expressions, choices and context-free grammars, written in llguidance's Lark.

Refuses what would take long to compile or could never end. Knows no tokens.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher, grammar_from

from fovea.errors import InvalidOption
from services.llm_longctx.serving.grammars.json_schema import (
    check_keywords,
    check_schema,
    close_objects,
    find_unknown,
    remove_keywords,
)

MAX_SOURCE_BYTES = 128 * 1024
"""Longest grammar; one of that size compiles in about a second."""

MAX_CHOICES = 1000
"""Texts of which one is answered."""

FREE_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,32}"
"""White space in a row: a model that likes it would fill its answer with nothing else."""

HEADER = '%llguidance {"no_forcing": true}\n'
"""Begins each grammar: every way to spell what must come is allowed, so that the draws are the model's own."""

MAX_UNENFORCED = 32
"""Rounds in which keywords that can't be enforced are found; each finds one more, or several."""

_ASCII_CLASSES = {
    "d": "[0-9]", "D": "[^0-9]", "w": "[A-Za-z0-9_]", "W": "[^A-Za-z0-9_]",
    "s": r"[\t\n\x0b\x0c\r\x20]", "S": r"[^\t\n\x0b\x0c\r\x20]",
}  # fmt: skip
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_LARK_TOKEN = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/(?:\\.|[^/\\\n])+/')
_LINE_OF_SOURCE = re.compile(r"\n *\d+ \|")
_PLACE = re.compile(r"^at \d+\(\d+\): ")
_UNIMPLEMENTED = re.compile(r"Unimplemented keys: (\[[^\]]*\])")
_UNENFORCED_SIGNS = {"oneOf constraints": "oneOf", "Unknown format": "format"}
_HEADED = re.compile(r"^\s*%llguidance\b[^\n]*\n")


def json_source(
    schema: Mapping[str, Any] | bool, field: str, *, is_strict: bool = True, whitespace: str | None = FREE_WHITESPACE
) -> str:
    """The grammar of the JSON texts that meet a schema; its objects are closed unless they say otherwise.

    Args:
        schema: The schema.
        field: The request's field that holds it.
        is_strict: Refuse keywords that can't be enforced, instead of leaving them out.
        whitespace: Text allowed between tokens of JSON, as a regular expression; None for nothing.

    Raises InvalidOption: The schema is too large, refers to nothing, or only endless values meet it.
    """
    return f"{HEADER}start: {json_expression(schema, field, is_strict=is_strict, whitespace=whitespace)}"


def json_expression(
    schema: Mapping[str, Any] | bool, field: str, *, is_strict: bool = True, whitespace: str | None = FREE_WHITESPACE
) -> str:
    """As `json_source`, as a part of another grammar's rule."""
    try:
        _check_size(json.dumps(schema), field)  # first: everything after it takes time by the schema's size
    except RecursionError as error:
        raise InvalidOption(f"{field} is nested too deeply.", hint="Define parts in $defs.", field=field) from error
    check_schema(schema, field)
    if is_strict:
        check_keywords(schema, field)
    options: dict[str, Any] = {"lenient": not is_strict}
    options |= {"whitespace_flexible": False} if whitespace is None else {"whitespace_pattern": whitespace}
    plain = {} if schema is True else {"not": {}} if schema is False else close_objects(schema)
    text = json.dumps({**plain, "x-guidance": options})
    return f"%json {_check_size(text, field)}"


def regex_source(pattern: str, field: str) -> str:
    """The grammar of the texts that a regular expression matches whole. Raises InvalidOption: It is too long."""
    document = json.loads(LLMatcher.grammar_from_regex(use_ascii_classes(_check_size(pattern, field))))
    return HEADER + str(document["grammars"][0]["lark_grammar"])


def choice_source(texts: Sequence[str], field: str) -> str:
    """The grammar of one of several texts. Raises InvalidOption: There are none, too many, or an empty one."""
    if not 0 < len(texts) <= MAX_CHOICES or not all(texts):
        raise InvalidOption(f"{field} needs 1 to {MAX_CHOICES} texts, none of them empty.", field=field)
    alternatives = " | ".join(json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(texts))
    return f"{HEADER}start: {_check_size(alternatives, field)}"


def lark_source(grammar: str, field: str) -> str:
    """A caller's context-free grammar, in Lark's form or GBNF.

    Raises InvalidOption: It is too long, or neither form.
    """
    try:
        found = str(grammar_from("grammar", _check_size(grammar, field)))
    except Exception as error:  # the converter raises what it happens to meet
        detail = f"{field} is no grammar: {error}."
        raise InvalidOption(detail, hint="Write it in Lark's form or in GBNF.", field=field) from error
    return HEADER + _LARK_TOKEN.sub(_use_ascii_in_terminal, _HEADED.sub("", found))


def use_ascii_classes(pattern: str) -> str:
    r"""A regular expression whose `\d`, `\w` and `\s` match ASCII alone, as in JSON Schema and in xgrammar."""
    return _ESCAPE.sub(lambda found: _ASCII_CLASSES.get(found[1], found[0]), pattern)


def _use_ascii_in_terminal(found: re.Match[str]) -> str:
    return use_ascii_classes(found[0]) if found[0].startswith("/") and not found[0].startswith("//") else found[0]


def describe_error(error: str) -> str:
    """The compiler's message without its view of the grammar, and without places in one that the caller never sees."""
    first = _LINE_OF_SOURCE.split(error.partition("\n<state>")[0])[0].strip().rstrip(".")
    return _PLACE.sub("", first).removeprefix("failed to compile JSON schema: ")[:300]


@lru_cache(maxsize=64)
def _find_unenforced(text: str) -> tuple[str, ...]:
    schema, options = json.loads(text), {"x-guidance": {"lenient": False}}
    found = find_unknown(schema)
    for _ in range(MAX_UNENFORCED):
        error = LLMatcher.validate_grammar(f"{HEADER}start: %json {json.dumps({**schema, **options})}")
        if (listed := _UNIMPLEMENTED.search(error)) is not None:
            names = json.loads(listed[1])
        else:
            names = [name for sign, name in _UNENFORCED_SIGNS.items() if sign in error]
        if not names or set(names) <= set(found):
            break
        found += names
        schema = remove_keywords(schema, names)
    return tuple(sorted(set(found)))


def find_unenforced(schema: Mapping[str, Any] | bool) -> tuple[str, ...]:
    """Names of the keywords of a schema that a grammar without `is_strict` leaves to the model."""
    return _find_unenforced(json.dumps(close_objects(schema))) if isinstance(schema, Mapping) else ()


def _check_size(text: str, field: str) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidOption(f"{field} holds half a surrogate pair, which is not a character.", field=field) from error
    if size > MAX_SOURCE_BYTES:
        detail = f"{field} has {size:,} bytes; {MAX_SOURCE_BYTES:,} are taken."
        raise InvalidOption(detail, hint="Describe less, or check the rest yourself.", field=field)
    return text
