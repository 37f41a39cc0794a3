"""Thoughts before an answer: they are apart from its text, whole and streamed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.llm_longctx.serving.reasoning.reasoning_parser import find_reasoning_parser
from services.llm_longctx.serving.reasoning.think_tags import ThinkTagParser
from services.llm_longctx.tests.conftest import HELLO, Server, app_of, say, write_folder

QWEN = (
    "{% for m in messages %}<{{ m.role }}{{ m.name }}>{% if m.reasoning_content %}({{ m.reasoning_content }})"
    "{% endif %}{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% if opens %}<think>\n{% endif %}{% endif %}"
)
WROTE = "<think>\nA letter.\n\nThen b?\n</think>\n\nb, I think."
FORCED = {"structured_outputs": {"regex": WROTE.replace("?", r"\?").replace(".", r"\.")}}


def read(parser, pieces, *, is_cut=False):
    return tuple("".join(part) for part in zip(*map(parser.feed, pieces), parser.end(is_cut=is_cut), strict=True))


@pytest.mark.parametrize(("prompt", "text", "parts"), [
    ("<assistant>", WROTE, ("A letter.\n\nThen b?", "b, I think.")),
    ("<assistant><think>\n", WROTE.removeprefix("<think>"), ("A letter.\n\nThen b?", "b, I think.")),
    ("<assistant><think>\n\n</think>\n\n", "b <th", ("", "b <th")),
    ("<assistant>", " No thoughts.\n</think>", ("", " No thoughts.\n</think>")),
    ("<assistant>", "<think>\ncut \n", ("cut", "")), ("<assistant>", "<think>\n\n</think>\n\n x\n", ("", "x\n")),
    ("<assistant>", "<think", ("", "<think")), ("<assistant>", "", ("", "")),
])  # fmt: skip
@given(data=st.data())
def test_thoughts_are_read_whatever_the_pieces(prompt, text, parts, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(ThinkTagParser(prompt), pieces) == parts
    cut = read(ThinkTagParser(prompt), [*pieces, *(["</thi"] if text == "<think>\ncut \n" else ())], is_cut=True)
    assert cut == (("", "") if text == "<think" else parts)


def test_the_template_says_whether_a_model_thinks():
    assert find_reasoning_parser(QWEN) is ThinkTagParser
    assert find_reasoning_parser("{{ messages }}") is find_reasoning_parser(None) is None


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("models") / "Tiny Llama", template=QWEN, positions=2048)
    with Server(app_of(folder, tmp_path_factory.mktemp("data"))) as server:
        yield server.client


def test_thoughts_are_apart_in_answers_and_streams(thinker):
    message = say(thinker, extra_body=FORCED, max_tokens=100).choices[0].message
    assert (message.reasoning_content, message.content) == ("A letter.\n\nThen b?", "b, I think.")
    found = {"reasoning_content": "", "content": ""}
    for chunk in say(thinker, extra_body=FORCED, max_tokens=100, stream=True, logprobs=True):
        delta = chunk.choices[0].delta
        for name in found:
            found[name] += getattr(delta, name, None) or ""
    assert found == {"reasoning_content": "A letter.\n\nThen b?", "content": "b, I think."}
    hidden = say(thinker, extra_body={**FORCED, "include_reasoning": False}, max_tokens=100).choices[0].message
    assert (hidden.reasoning_content, hidden.content) == (None, "b, I think.")
    cut = say(thinker, extra_body=FORCED, max_tokens=12).choices[0]
    assert (cut.message.reasoning_content, cut.message.content, cut.finish_reason) == ("A le", None, "length")


JSON = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
TOOL = [{"type": "function", "function": {"name": "f", "parameters": JSON}}]


@pytest.mark.parametrize("more", [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": JSON}}},
    {"extra_body": {"structured_outputs": {"json": JSON}}}, {"tools": TOOL, "tool_choice": "required"},
    {"extra_body": {"structured_outputs": {"choice": ['{"a": 1}']}}},
    {"extra_body": {"response_format": {"type": "choice", "choices": ['{"a": 1}']}}},
    {"extra_body": {"structured_outputs": {"regex": r'\{"a": [01]\}'}}},
    {"extra_body": {"structured_outputs": {"grammar": 'start: "{\\"a\\": 1}"'}}},
])  # fmt: skip
def test_what_a_form_demands_is_no_thought_where_the_prompt_begins_one(thinker, more):
    extra = more.get("extra_body", {}) | {"chat_template_kwargs": {"opens": True}}
    message = say(thinker, max_tokens=300, **more | {"extra_body": extra}).choices[0].message
    assert getattr(message, "reasoning_content", None) is None
    said = message.tool_calls[0].function.arguments if message.tool_calls else message.content
    assert json.loads(said).keys() == {"a"}


def test_thinking_can_be_turned_off_and_earlier_thoughts_and_names_reach_the_template(thinker):
    def prompt_of(**more):
        body = {"prompt_logprobs": 0, **more.pop("extra", {})}
        scored = say(thinker, max_tokens=1, extra_body=body, **more).prompt_logprobs[1:]
        return "<" + "".join(next(iter(one.values()))["decoded_token"] for one in scored)

    for extra in ({"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}):
        assert prompt_of(extra=extra).endswith("<assistant><think>\n\n</think>\n\n")
    assert prompt_of(extra={"reasoning_effort": "high"}).endswith("<assistant>")
    turns = [*HELLO, {"role": "assistant", "content": "b", "reasoning_content": "hm"}, *HELLO]
    assert "<assistant>(hm)b\n" in prompt_of(messages=turns)
    assert "<userAnn>Hello" in prompt_of(messages=[{**HELLO[0], "name": "Ann"}])
