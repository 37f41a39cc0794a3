"""Texts with a grammar: labels and runs of TREC, collections, and the grammars and schemas of structured output."""

import gzip
import json
from collections.abc import Callable
from functools import cache

from pydantic import BaseModel, ValidationError

from fovea.api.text import GenerationOptions
from fovea.errors import InvalidOption, Malformed
from services.llm_longctx.serving.grammars.formats import find_grammar_source
from services.llm_longctx.serving.grammars.token_grammar import GrammarCompiler
from services.relevance_judge.parsing import parse
from services.relevance_judge.parsing.label_formats import parse_labels, parse_signals
from services.relevance_judge.parsing.trec import format_qrels, parse_qrels, parse_runs, read_qrels
from services.relevance_judge.routes.agreement import AgreementIn, agreement
from tests.fuzz.harness import Harness, ask, with_file
from tests.harness.toy_tokenizers import ByteTokenizer

_STEPS = 6
"""Tokens of an answer under a grammar."""

_ROWS = (
    b'{"qid": "1", "docid": "d", "grade": 2, "signal": 0.5, "template": "t", "tokens": 3, "latency_ms": 2, "cost": 1}\n'
)
_LABELS = b"1 0 d1 2\n1 0 d2 0\n2 0 d1 1\n2 0 d2 3\n"
_PARSERS: tuple[Callable[[str], object], ...] = (
    lambda text: format_qrels(parse_qrels(text)), parse_runs, parse, lambda text: parse_labels(text, "labels"),
    lambda text: parse_signals(text, "signals"),
)  # fmt: skip


def _trec(data: bytes) -> object:
    return [ask(parser, data.decode("utf-8", "replace")) for parser in _PARSERS]


def _compare(data: bytes) -> object:
    """Answer of the route to reference labels and a judge's, as JSON without NaN."""
    reference, _, judge = data.decode("utf-8", "replace").partition("\f")
    found = ask(lambda _: agreement(AgreementIn(reference=reference, judge=judge, draws=100)), "")
    return isinstance(found, BaseModel) and found.model_dump_json()


@cache
def _compiler() -> GrammarCompiler:
    return GrammarCompiler(ByteTokenizer(), 256)


def _grammar(data: bytes) -> object:
    """Compile what a request's options ask for, and draw the first allowed tokens."""
    try:
        options = GenerationOptions.model_validate(json.loads(data))
    except (ValidationError, ValueError, RecursionError) as error:
        raise Malformed("no options") from error
    if (source := find_grammar_source(options)) is None:
        return None
    grammar, tokens = _compiler().compile(*source), []
    for _ in range(_STEPS):
        if grammar.is_finished:
            break
        if not (allowed := grammar.mask().nonzero().flatten().tolist()):
            raise InvalidOption("no way on")
        tokens.append(allowed[len(data) % len(allowed)])
        grammar.advance(tokens[-1])
    return tokens


def _asked(**form: object) -> bytes:
    return json.dumps({"structured_outputs": form}).encode()


def _share_references(depth: int) -> dict[str, object]:
    """A schema each of whose definitions needs the next one twice: there are 2^depth ways through it."""
    twice = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(depth)}
    shared = {
        name: {"type": "object", "properties": {"l": next_, "r": next_}, "required": ["l", "r"]}
        for name, next_ in twice.items()
    }
    return {"$ref": "#/$defs/a0", "$defs": {**shared, f"a{depth}": {"type": "null"}}}


_SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "pattern": "^[a-z]+$"}, "b": {"$ref": "#/$defs/n"}},
    "required": ["a"],
    "$defs": {"n": {"anyOf": [{"type": "integer", "minimum": 0, "multipleOf": 3}, {"type": "null"}]}},
}

HARNESSES: dict[str, Harness] = {
    "trec": Harness(
        _trec,
        (b"1 0 d1 2\n1 0 d2 0\n", b"1 Q0 d1 1 0.5 run\n1 Q0 d2 2 nan run\n", _ROWS * 2, b'##final score: 2\n{"O": 3}'),
        words=(
            b"NaN", b"Infinity", b"1e999", b"9" * 400, b"[]", b"{}", b"null", b"\xe2\x80\xa8", b"\0", b"-",
            b'"\\ud800"',
        ),
    ),
    "trec-file": Harness(
        with_file(lambda file: ask(read_qrels, file), ".gz"),
        (gzip.compress(b"1 0 d1 2\n1 0 d2 0\n", mtime=0), b"1\ttext\n"),
    ),
    "judgements": Harness(
        _compare,
        (b"".join([_LABELS, b"\f", _LABELS.replace(b" 2", b" 0")]), _LABELS + b"\f" + _ROWS),
        words=(b"\f", b" 1000", b" -1000", b"1e308", b"-1e308", b"1 0 d1 2\n", b"\xe2\x80\xa8", b"0"),
    ),
    "grammar": Harness(
        _grammar,
        (
            _asked(json=_SCHEMA), _asked(regex="[a-c]{1,3}(x|y)*", whitespace_pattern="[ ]"),
            _asked(choice=["yes", "no"]), _asked(grammar='start: "a" b+\nb: /[0-9]/ | "(" start ")"'),
            _asked(grammar='root ::= "a" x*\nx ::= [0-9] | "(" root ")"'),
            json.dumps({"response_format": {"type": "json_schema", "json_schema": {"schema": _SCHEMA}}}).encode(),
            _asked(json=_share_references(20)), _asked(json={"anyOf": [{"const": i} for i in range(500)]}),
            _asked(json={"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(300)}}),
        ),
        words=(
            b'"\\ud800"', b"1e999", b"NaN", b"null", b"[]", b"{}", b'"$ref": "#"', b'"not": {}', b'"minItems": 1e9',
            b"{1,99999}", b"(?=a)", b"\\\\d", b'"enum": []', b'"allOf": [true]', b'"format": "date"', b"true",
            b"-1", b'"const": ', b"%ignore /a/", b"%json {}", b"%regex {}", b"~1", b'"maxLength": 99999999',
            b"/.*/i", b"@a",
        ),
    ),
}  # fmt: skip
