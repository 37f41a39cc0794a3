"""Constrained decoding: answers meet their grammar and are drawn as the model draws; bad grammars are refused."""

import contextlib
import itertools
import json
import re
import time
from collections import Counter

import jsonschema
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fovea.api.text import GenerationOptions
from fovea.errors import InvalidOption
from services.llm_longctx.engine import Sampling
from services.llm_longctx.engine.sampler import Sampler
from services.llm_longctx.serving.grammars.formats import find_grammar_source, find_unenforced_keywords
from services.llm_longctx.serving.grammars.json_schema import check_schema, close_objects
from services.llm_longctx.serving.grammars.token_grammar import GrammarCompiler
from shared.lm.tokenizer import Tokenizer
from tests.harness.toy_tokenizers import ByteTokenizer, WordTokenizer

WORDS = "the red blue ?"
VOCAB = 272
PERSON = {
    "type": "object", "required": ["name", "age", "tags"], "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 2},
    },
}  # fmt: skip
NEXT = {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}
NODE = {"type": "object", "properties": {"v": {"type": "integer"}, "next": NEXT}, "required": ["v", "next"]}
TREE = {"$defs": {"node": {**NODE, "additionalProperties": False}}, "$ref": "#/$defs/node"}


def compile_options(compiler, **options):
    return compiler.compile(*find_grammar_source(GenerationOptions(**options)))


def structured(compiler, **form):
    return compile_options(compiler, structured_outputs=form)


def json_schema(schema, *, strict=True):
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": strict}}


def write_answer(codec, grammar, seed=0, temperature=1.0, wanted='"}]:0,', limit=400):
    """An answer of a model with random logits, which after a while wants to close what it opened."""
    generator = torch.Generator().manual_seed(seed)
    closing = torch.zeros(VOCAB)
    closing[[codec.encode(c)[0] for c in wanted]] = 9
    sampler, said = Sampler(Sampling(temperature=temperature, seed=seed), [], VOCAB, grammar), []
    for step in range(limit):
        token = sampler.draw(torch.randn(VOCAB, generator=generator) + closing * (step > 20)).id
        if token in codec.eos:
            break
        said.append(token)
        if sampler.is_finished:
            break
    return codec.decode(said)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("schema", [PERSON, TREE, {"type": "object"}], ids=["person", "tree", "object"])
def test_answers_meet_their_schema(codec, compiler, schema, temperature):
    for seed in range(4):
        grammar = compile_options(compiler, response_format=json_schema(schema))
        jsonschema.validate(json.loads(write_answer(codec, grammar, seed, temperature)), schema)


@pytest.mark.parametrize(("form", "pattern"), [
    ({"regex": r"[a-c]{3}-\d{2}/x"}, r"[a-c]{3}-\d{2}/x"),
    ({"choice": ["red", "blue", 'say "é😀"\n']}, 'red|blue|say "é😀"\n'),
    ({"grammar": 'start: "a" b+\nb: "b" | "c"'}, "a[bc]+"), ({"grammar": 'root ::= "yes" | "no"'}, "yes|no"),
    ({"grammar": '%llguidance {}\nstart: "yes"'}, "yes"),
    ({"json": {"type": "array", "items": {"type": "boolean"}}, "disable_any_whitespace": True}, r"\[[^ ]*\]"),
    ({"json": json.dumps(PERSON), "whitespace_pattern": " "}, r"\{.*\}"),
])  # fmt: skip
def test_each_form_of_structured_outputs(codec, compiler, form, pattern):
    for seed in range(3):
        text = write_answer(codec, structured(compiler, **form), seed, wanted='"}]:0,bn')
        assert re.fullmatch(pattern, text, re.DOTALL), text


def accepts(text, **options):
    """Whether a text is a whole answer under the form."""
    grammar = compile_options(GrammarCompiler(ByteTokenizer(), 256), **options)
    if not grammar.accepts(list(text.encode())):
        return False
    for byte in text.encode():
        grammar.advance(byte)
    return grammar.is_accepting


@pytest.mark.parametrize(("pattern", "met", "missed"), [
    (r"\d{2}-[\da-f]", "12-f", "٣٤-f"), (r"\w+", "a_1", "é"), (r"[^\W]", "a", "é"), (r"a\sb", "a\fb", "a b"),
    (r"[\S]\D", "é٣", "é3"), (r"\\d", r"\d", r"\1"),
])  # fmt: skip
@pytest.mark.parametrize(
    "write", [lambda p: {"regex": p}, lambda p: {"grammar": f'start: A "\\\\d"\nA: /{p}/ // /\\d/'}]
)
def test_classes_are_ascii(write, pattern, met, missed):
    form = write(pattern)
    end = r"\d" if "grammar" in form else ""
    assert accepts(met + end, structured_outputs=form)
    assert not accepts(missed + end, structured_outputs=form)


@pytest.mark.parametrize("schema", [
    {"type": "integer", "minimum": 10**20, "maximum": 10**20 + 5}, {"type": "number", "maximum": 1e300},
    {"type": "integer", "minimum": -(2**63), "maximum": -(2**63)},  # ended the process
    {"items": {"minimum": -(2**63) + 1, "maximum": -(2**63) + 1}}, {"type": "integer", "maximum": 10**400},
    {"enum": [1, {"a": [10**20 + 5]}]}, {"const": 2**63}, {"enum": [{"a": [-(2**63) + 1]}]},  # did so, too
    {"const": 1234567890123456789}, {"properties": {"id": {"enum": [2**53 + 1]}}},  # became 1234567890123456768
    {"type": "integer", "maximum": 2**53 + 1},
])  # fmt: skip
def test_numbers_beyond_64_bits_are_refused(compiler, schema):
    with pytest.raises(InvalidOption, match="64 bits"):
        compile_options(compiler, response_format=json_schema(schema))


@pytest.mark.parametrize(
    "schema", [{"type": "integer", "minimum": 5, "maximum": 2**63 - 1}, {"enum": [2**63 - 1, -(2**63) + 2048]}]
)
def test_numbers_of_64_bits_are_met(schema):
    assert accepts(str(2**63 - 1), response_format=json_schema(schema))


@pytest.mark.parametrize(("schema", "left"), [
    ({"type": "array", "uniqueItems": True, "contains": {"type": "null"}}, ["contains", "uniqueItems"]),
    ({"properties": {"format": {"items": {"not": {"type": "null"}}}}}, ["not"]),
    ({"oneOf": [{"type": "string", "format": "colour"}, {"type": "string"}]}, ["format", "oneOf"]),
    ({"additionalProperties": {"if": {"type": "string"}, "then": {"frobnicate": 3}}}, ["if", "then", "frobnicate"]),
    (PERSON, []),
])  # fmt: skip
def test_keywords_that_are_left_to_the_model_are_named_and_what_is_left_is_met(codec, compiler, schema, left):
    form = json_schema(schema, strict=False)
    assert find_unenforced_keywords(GenerationOptions(response_format=form)) == tuple(sorted(left))
    assert find_unenforced_keywords(GenerationOptions(response_format=json_schema(schema))) == ()
    kind = {"array": list, "object": dict}.get(schema.get("type"), object)
    assert isinstance(json.loads(write_answer(codec, compile_options(compiler, response_format=form))), kind)


def test_white_space_in_a_row_ends(codec, compiler):
    grammar = compile_options(compiler, response_format={"type": "json_object"})
    spaces = torch.zeros(VOCAB)
    spaces[codec.encode(" ")[0]] = 50
    sampler = Sampler(Sampling(), [], VOCAB, grammar)
    said = codec.decode([sampler.draw(spaces).id for _ in range(40)])
    assert said.startswith("{" + " " * 32)
    assert said[33] != " "


def test_a_model_without_end_token_ends_with_the_grammar():
    words = WordTokenizer(WORDS)
    sampler = Sampler(Sampling(), [], 4, structured(GrammarCompiler(words, 4), choice=[" red", " blue"]))
    assert words.decode([sampler.draw(torch.zeros(4)).id]) in {"red", "blue"}
    assert sampler.is_finished
    bytewise = structured(GrammarCompiler(ByteTokenizer(), 256), choice=["no"])
    for letter in b"no":
        assert bytewise.mask().nonzero().flatten().tolist() == [letter]
        assert not bytewise.is_finished
        bytewise.advance(letter)
    assert bytewise.is_finished


def test_special_tokens_and_ids_beyond_the_tokenizer_are_no_text(codec, compiler):
    grammar = structured(compiler, regex="(.|\n)*")
    mask = grammar.mask()
    assert mask[: codec.size - 1].sum() == 128 + 51  # bytes that begin a character
    assert mask[list(codec.eos)].all()  # it may be over
    assert not mask[codec.size :].any()
    grammar = structured(compiler, regex="<(.|\n)*>")
    grammar.advance(codec.encode("<")[0])
    assert not grammar.mask()[list(codec.eos)].any()


def test_every_spelling_of_what_must_come_is_allowed():
    from tokenizers import Tokenizer as Library
    from tokenizers import models

    library = Library(models.WordLevel({t: i for i, t in enumerate(["y", "e", "s", "ye", "es", "yes", "no"])}, "no"))
    mask = structured(GrammarCompiler(Tokenizer(library), 7), choice=["yes"]).mask()
    assert mask.nonzero().flatten().tolist() == [0, 3, 5]


def test_draws_follow_the_renormalised_distribution(codec, compiler):
    """Texts of [abc][ab]?: the chi-squared test over 2,000 answers against products of renormalised softmaxes."""
    temperature = 0.7
    a, b, c = (codec.encode(letter)[0] for letter in "abc")
    end = min(codec.eos)
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(1)) * 2

    def step(row, allowed):
        weights = (logits[row, allowed] / temperature).double().softmax(-1)
        return dict(zip(allowed, weights.tolist(), strict=True))

    first, second = step(0, [a, b, c]), step(1, [a, b, end])
    expected = {(x, y): first[x] * second[y] for x, y in itertools.product(first, second)}
    found = Counter()
    start = structured(compiler, regex="[abc][ab]?")
    for seed in range(2000):
        sampler = Sampler(Sampling(temperature=temperature, seed=seed), [], VOCAB, start.fork())
        found[tuple(sampler.draw(logits[row]).id for row in range(2))] += 1
    assert set(found) <= set(expected)
    texts = list(expected)
    result = stats.chisquare([found[t] for t in texts], [2000 * expected[t] / sum(expected.values()) for t in texts])
    assert result.pvalue > 1e-3, dict(found)


def test_unlikely_tokens_keep_their_share():
    """Allowed tokens far behind 256 likelier ones that are not allowed: all of them may be drawn."""
    words = ByteTokenizer()
    logits = torch.full((256,), 10.0)
    logits[list(b"xyz")] = torch.tensor([0.0, 0.0, -1.0])
    grammar = structured(GrammarCompiler(words, 256), choice=["x", "y", "z"])
    samplers = (Sampler(Sampling(temperature=1, seed=seed), [], 256, grammar.fork()) for seed in range(600))
    assert {one.draw(logits).id for one in samplers} == set(b"xyz")


def test_objects_that_list_properties_have_no_others_unless_they_say_so():
    plain = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}}
    closed = close_objects(plain)
    assert closed["additionalProperties"] is False
    assert closed["properties"]["a"]["additionalProperties"] is False
    for other in ({"additionalProperties": True}, {"patternProperties": {}}, {"anyOf": [{}]}):
        assert close_objects(plain | other).get("additionalProperties", True) is not False
    joined = {"allOf": [plain, {"properties": {"b": True}}]}
    assert (close_objects(joined), close_objects({"type": "object"})) == (joined, {"type": "object"})


DEEP = {"type": "integer"}
for _ in range(40):
    DEEP = {"type": "array", "items": DEEP}

BAD = {
    "keyword": json_schema({"type": "array", "uniqueItems": True}), "type": json_schema({"type": "strin"}),
    "unknown keyword": json_schema({"type": "object", "properties": {"a": {"type": "string", "frobnicate": 3}}}),
    "bound": json_schema({"type": "integer", "minimum": "x"}), "empty enum": json_schema({"enum": []}),
    "nothing": json_schema({"type": "integer", "minimum": 5, "maximum": 3}), "false": json_schema(False),
    **{at: json_schema({"$ref": at}) for at in ("#/$defs/x", "http://example.com/x.json", "file:///etc/passwd", "#")},
    "endless": json_schema(
        {"$defs": {"n": {"properties": {"next": {"$ref": "#/$defs/n"}}, "required": ["next"]}}, "$ref": "#/$defs/n"}
    ),
    "endless list": json_schema({"type": "array", "minItems": 1, "items": {"$ref": "#"}}),
    "deep": json_schema(DEEP),
    "wide": json_schema({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(5000)}}),
    "10 MB of enum": json_schema({"enum": [f"value-{i}" for i in range(600_000)]}),
    "a million alternatives": json_schema({"anyOf": [{}] * 1_000_000}),
    "long": json_schema({"const": "x" * 200_000}), "no schema": {"type": "json_schema"},
    "no choices": {"type": "choice"},
}  # fmt: skip


@pytest.mark.timed("only a clock can tell that a hostile schema does not keep the compiler busy")
@pytest.mark.parametrize("response_format", BAD.values(), ids=BAD.keys())
def test_bad_formats_are_refused_in_time(compiler, response_format):
    begun = time.perf_counter()
    with pytest.raises(InvalidOption) as caught:
        compile_options(compiler, response_format=response_format)
    assert caught.value.field == "response_format"
    assert len(caught.value.detail) < 500
    assert not re.search(r"at \d+\(\d+\)|compile JSON", caught.value.detail), "a place in a grammar that nobody sees"
    assert time.perf_counter() - begun < 5


def chain(length: int, last: dict) -> dict:
    """Definitions that each hold two of the next: 2 ** length values, in a schema that is linear in length."""
    link = {f"a{i}": pair(f"a{i + 1}") for i in range(length)}
    return {"$defs": {**link, f"a{length}": last}, "$ref": "#/$defs/a0"}


def pair(name: str) -> dict:
    return {"properties": {key: {"$ref": f"#/$defs/{name}"} for key in "xy"}, "required": ["x", "y"]}


def test_references_shared_by_many_are_followed_once():
    check_schema(chain(400, {"type": "null"}), "f")
    with pytest.raises(InvalidOption, match="refers to itself"):
        check_schema(chain(400, pair("a3")), "f")


NAMES = st.sampled_from("abcd").map(lambda name: {"$ref": f"#/$defs/{name}"})
SCHEMAS = st.recursive(
    NAMES | st.just({"type": "null"}),
    lambda part: st.lists(part, min_size=1, max_size=3).flatmap(
        lambda parts: st.sampled_from(
            [{"anyOf": parts}, {"allOf": parts}, {"type": "array", "minItems": 1, "items": parts[0]}]
        )
    ),
    max_leaves=6,
)


@given(st.fixed_dictionaries(dict.fromkeys("abcd", SCHEMAS)))
def test_a_schema_is_endless_exactly_where_no_definition_can_be_met_first(definitions):
    met: set[str] = set()

    def is_met(part: dict) -> bool:
        if "$ref" in part:
            return part["$ref"][-1] in met
        if "anyOf" in part:
            return any(map(is_met, part["anyOf"]))
        return all(map(is_met, [*part.get("allOf", ()), *([part["items"]] if "items" in part else ())]))

    for _ in definitions:
        met |= {name for name, part in definitions.items() if is_met(part)}
    schema = {"$defs": definitions, "$ref": "#/$defs/a"}
    if "a" in met:
        check_schema(schema, "f")
    else:
        with pytest.raises(InvalidOption, match="refers to itself"):
            check_schema(schema, "f")


@pytest.mark.parametrize("form", [
    {}, {"json_object": False}, {"regex": "a", "choice": ["b"]}, {"regex": "("}, {"regex": r"(?=a)b"},
    {"regex": r"[^\s\S]"}, {"regex": "a" * 200_000}, {"choice": []}, {"choice": [""]},
    {"choice": [str(i) for i in range(1001)]}, {"grammar": "start: foo"}, {"grammar": "start: start"},
    {"grammar": "::= nothing"}, {"json": "{oops"}, {"json": "[1]"}, {"json": {"not": {"type": "string"}}},
])  # fmt: skip
def test_bad_structured_outputs_are_refused(compiler, form):
    with pytest.raises(InvalidOption, check=lambda e: e.field == "structured_outputs"):
        structured(compiler, **form)


def test_two_forms_at_once_are_refused_and_none_is_free(compiler):
    with pytest.raises(InvalidOption, match="either"):
        compile_options(compiler, response_format={"type": "json_object"}, structured_outputs={"regex": "a"})
    for options in ({"response_format": {"type": "text"}}, {}):
        assert find_grammar_source(GenerationOptions(**options)) is None


@pytest.mark.timed("only a clock can tell that an exploding expression does not keep the compiler busy")
def test_what_explodes_is_refused_in_time(compiler):
    begun = time.perf_counter()
    for form in ({"regex": "(.*a){20}.{1000}b"}, {"json": {"type": "string", "pattern": "(a{1,1000}){1,1000}"}}):
        with contextlib.suppress(InvalidOption):
            structured(compiler, **form).mask()
    assert time.perf_counter() - begun < 5


@pytest.mark.parametrize("form", [{"json_object": True}, {"choice": ["red"]}, {"regex": "[0-9]+"}])
def test_a_form_that_no_token_begins_or_goes_on_with_is_refused(form):
    words = GrammarCompiler(WordTokenizer(WORDS), 4)
    with pytest.raises(InvalidOption, match="No token of this model"):
        structured(words, **form)
    sampler = Sampler(Sampling(), [], 4, structured(words, choice=[" red sky"]))
    sampler.draw(torch.zeros(4))
    with pytest.raises(InvalidOption, match="No token of this model"):
        sampler.draw(torch.zeros(4))
