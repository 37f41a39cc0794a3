"""Each field of vLLM's and OpenAI's requests is served as it says, refused by name, or named in `warnings`."""

import json

import openai
import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_params

from fovea.api.embeddings import EmbeddingsRequest
from fovea.api.request_fields import ACCEPTED, REFUSED
from fovea.api.text import ChatRequest, CompletionRequest
from services.llm_longctx.tests.conftest import HELLO, MODEL, Server, app_of, go_on, say, text_of
from services.llm_longctx.tests.test_openai_refusals import BODIES
from tests.peer_fields import PEERS, find_fate

END = {"logit_bias": {"256": 100}}  # the end token is drawn wherever it may
ROUTES = {
    "/v1/chat/completions": (ChatRequest, chat_params.CompletionCreateParamsBase),
    "/v1/completions": (CompletionRequest, completion_create_params.CompletionCreateParamsBase),
    "/v1/embeddings": (EmbeddingsRequest, embedding_create_params.EmbeddingCreateParams),
}


def answer(client, **more):
    """Text, reason and stop reason of a completion, the same whole and streamed, and its number of tokens."""
    extra = {"extra_body": more.pop("extra", {})}
    whole = go_on(client, **extra, **more)
    (choice,) = whole.choices
    text, last = "", None
    for chunk in go_on(client, stream=True, **extra, **more):
        text, last = text + chunk.choices[0].text, chunk.choices[0]
    assert (text, last.finish_reason) == (choice.text, choice.finish_reason)
    assert getattr(last, "stop_reason", None) == choice.stop_reason
    return choice.text, choice.finish_reason, choice.stop_reason, whole.usage.completion_tokens


def test_end_tokens_can_be_ignored_put_off_and_shown(client):
    assert answer(client, **END) == ("", "stop", None, 1)
    assert answer(client, **END, extra={"ignore_eos": True}) == ("", "length", None, 12)
    shown = answer(client, **END, extra={"ignore_eos": True, "skip_special_tokens": False}, max_tokens=2)
    assert shown == ("<|im_end|>" * 2, "length", None, 2)
    text, *rest = answer(client, **END, extra={"min_tokens": 5})
    assert (len(text.encode(errors="replace")) > 0, rest) == (True, ["stop", None, 6])


def test_stop_tokens_and_texts_end_an_answer_and_may_stay_in_it(client):
    text = answer(client, max_tokens=30)[0]
    at = next(i for i in range(3, 30) if text[i] not in text[:i] and text[i].isascii())
    letter, two = text[at], text[at : at + 2]
    (token,) = _ids(client, letter)
    for stops in (two, [two, "never"], ["never", text[at + 1 : at + 3], two]):
        assert answer(client, max_tokens=30, stop=stops)[:3] == (text[:at], "stop", two)
    for extra, shown in (({}, text[:at]), ({"include_stop_str_in_output": True}, text[: at + 1])):
        found = answer(client, max_tokens=30, extra={"stop_token_ids": [token], **extra})
        assert found == (shown, "stop", token, at + 1)
    kept = answer(client, max_tokens=30, stop=[two], extra={"include_stop_str_in_output": True})
    assert kept[:3] == (text[: at + 2], "stop", two)
    assert len(answer(client, max_tokens=30, stop=[two], extra={"min_tokens": at + 3})[0]) > at + 2
    assert answer(client, max_tokens=30, stop=[two, *(f"never {i}" for i in range(15))])[2] == two


def _ids(client, text):
    return client.post("/../tokenize", body={"prompt": text}, cast_to=dict[str, object])["tokens"]


def test_bad_words_and_allowed_tokens_bound_what_is_drawn(client):
    letters = {"allowed_token_ids": list(range(64, 80))}
    text = answer(client, max_tokens=30, extra=letters)[0]
    assert set(text) <= set("abcdefghijklmnop")
    for word in (text[2:5], text[4]):
        assert word not in answer(client, max_tokens=30, extra={**letters, "bad_words": [word, "never"]})[0]
    for hot in (2, 1e300):
        letters = answer(client, max_tokens=30, temperature=hot, seed=1, extra={"allowed_token_ids": [64, 65]})[0]
        assert set(letters) == {"a", "b"}
    forced = {"structured_outputs": {"regex": "[abc]{9}"}, "bad_words": ["a", "bb"]}
    assert set(answer(client, extra=forced)[0]) <= set("bc")
    assert "bb" not in answer(client, extra=forced)[0]
    with pytest.raises(openai.BadRequestError, match="No token may follow", check=lambda e: e.param == "bad_words"):
        go_on(client, extra_body={"structured_outputs": {"regex": "z+"}, "allowed_token_ids": [64]})


def test_vllms_ranges_are_taken(client):
    assert answer(client, extra={"top_k": -1}) == answer(client)
    assert answer(client, temperature=50, seed=1, extra={"top_k": 1})[0] == answer(client)[0]
    assert len(say(client, n=64, max_tokens=2).choices) == 64
    assert answer(client, max_tokens=3, extra={"max_completion_tokens": 5})[3] == 5
    assert say(client, extra_body={"add_special_tokens": True}).choices == say(client).choices


def test_prompts_are_scored_in_chats_and_completions(client):
    echoed = go_on(client, "Once upon", echo=True, logprobs=1, max_tokens=0).choices[0].logprobs
    for more in ({}, {"echo": True, "logprobs": 1}):
        (choice,) = go_on(client, "Once upon", max_tokens=2, extra_body={"prompt_logprobs": 3}, **more).choices
        first, *rest = choice.prompt_logprobs
        assert first is None
        own = [next(iter(one.values())) for one in rest]
        assert [one["decoded_token"] for one in own] == list("nce upon")
        assert [one["logprob"] for one in own] == pytest.approx(echoed.token_logprobs[1:], abs=1e-4)
        assert all(3 <= len(one) <= 4 and {1, 2, 3} <= {t["rank"] for t in one.values()} for one in rest)
        if more:
            assert [len(top) for top in choice.logprobs.top_logprobs[1:]] == [1] * (len(choice.logprobs.tokens) - 1)
    chat = say(client, n=2, extra_body={"prompt_logprobs": 0})
    assert len(chat.prompt_logprobs) == chat.usage.prompt_tokens
    assert chat.choices[0] == say(client, n=2).choices[0]
    assert say(client).prompt_logprobs is None
    with pytest.raises(openai.BadRequestError, match="2,116,800 log-probabilities"):
        go_on(client, [list(range(150))] * 672, extra_body={"prompt_logprobs": 20})
    with pytest.raises(openai.BadRequestError, match="whole answers"):
        say(client, stream=True, extra_body={"prompt_logprobs": 0})


def test_likely_tokens_of_one_text_stay_apart(client, server, monkeypatch):
    """As `A` and the byte `<0x41>` of SentencePiece."""
    tops = [go_on(client, max_tokens=1, logprobs=4).choices[0].logprobs.top_logprobs[0]]
    monkeypatch.setattr(type(server.app.state.host.servable(MODEL).adapter.tokenizer), "token_text", lambda *_: "A")
    tops += [go_on(client, max_tokens=1, logprobs=4).choices[0].logprobs.top_logprobs[0]]
    assert list(tops[1].values()) == list(tops[0].values()) == sorted(tops[0].values(), reverse=True)
    assert [name.partition(":")[0] for name in tops[1]] == ["A", *["token_id"] * 3]


def test_a_final_message_is_gone_on_with(client):
    messages = [*HELLO, {"role": "assistant", "content": "I am a "}]
    rendered = "<user>Hello, who are you?\n<assistant>I am a "
    for extra in ({}, {"add_generation_prompt": False}):
        found = text_of(client, messages=messages, extra_body={"continue_final_message": True, **extra})
        assert found == go_on(client, rendered, max_tokens=16).choices[0].text
    bare = text_of(client, extra_body={"add_generation_prompt": False})
    assert bare == go_on(client, "<user>Hello, who are you?\n", max_tokens=16).choices[0].text
    with pytest.raises(openai.BadRequestError, match="exclude each other"):
        say(client, extra_body={"continue_final_message": True, "add_generation_prompt": True})


def test_long_prompts_are_cut_where_a_request_says_so(client):
    long = "0123456789" * 30
    for size, side, kept in ((7, "left", long[-7:]), (7, "right", long[:7]), (-1, "left", long[-180:])):
        found = go_on(client, long, extra_body={"truncate_prompt_tokens": size, "truncation_side": side})
        assert (found.choices, found.usage.prompt_tokens) == (go_on(client, kept).choices, len(kept))


@pytest.mark.parametrize(("size", "side", "kept"), [
    (4, "left", "upon"), (9, "left", "Once upon"), (10, "left", "Once upon"), (4, "right", "Onc"),
])  # fmt: skip
def test_a_cut_prompt_is_echoed_as_it_is_kept(client, server, monkeypatch, size, side, kept):
    tokenizer = server.app.state.host.servable(MODEL).adapter.tokenizer
    encode = tokenizer.encode
    monkeypatch.setattr(
        tokenizer, "encode", lambda text, *, special=True: [256] * special + encode(text, special=False)
    )
    extra = {"truncate_prompt_tokens": size, "truncation_side": side}
    (choice,) = go_on(client, echo=True, logprobs=0, max_tokens=0, extra_body=extra).choices
    assert (choice.text, len(choice.logprobs.tokens)) == (kept, size)
    assert choice.logprobs.text_offset[-1] == len(kept) - 1


@pytest.mark.parametrize(("older", "text"), [
    ({"guided_choice": ["yes", "no"]}, ("yes", "no")), ({"guided_regex": "a{3}"}, ("aaa",)),
    ({"guided_grammar": 'root ::= "ab"'}, ("ab",)), ({"guided_json": {"const": 7}}, ("7",)),
    ({"guided_json": '{"const": 7}', "guided_decoding_backend": "xgrammar"}, ("7",)),
])  # fmt: skip
def test_older_names_of_structured_outputs_are_understood(client, older, text):
    assert text_of(client, extra_body=older) in text


def test_structural_tags_hold_between_their_texts(client):
    first = {"begin": "<f=a>", "schema": {"const": [1]}, "end": "</f>"}
    tags = {"structures": [first, {"begin": "<f=b>", "schema": {"type": "boolean"}, "end": ""}], "triggers": ["<f="]}
    letters = {"allowed_token_ids": list(range(64, 80))}
    forms = ({"response_format": {"type": "structural_tag", **tags}},
             {"structured_outputs": {"structural_tag": json.dumps({"type": "structural_tag", **tags})}})  # fmt: skip
    free = text_of(client, extra_body=letters)
    for form in forms:
        assert text_of(client, extra_body={**form, **letters}) == free
        # Where only these letters may be drawn, a tag that is begun must be one of the two.
        allowed = [token for letter in "<f=" for token in _ids(client, letter)]
        more = {"allowed_token_ids": [*allowed, *_ids(client, "ab>[1]</f>truefalse")], "temperature": 2.0}
        texts = [text_of(client, seed=seed, extra_body={**form, **more}, max_tokens=60) for seed in range(4)]
        assert all(piece.startswith(("a>", "b>")) for text in texts for piece in text.split("<f=")[1:-1])
    vague = {"begin": "<f=c>", "schema": {"type": "array", "uniqueItems": True}, "end": ""}
    for bad in ({"structures": tags["structures"]}, {**tags, "triggers": ["<g="]}, {**tags, "structures": [vague]}):
        with pytest.raises(openai.BadRequestError, check=lambda e: e.param == "response_format"):
            say(client, extra_body={"response_format": {"type": "structural_tag", **bad}})


def test_templates_and_their_names_come_with_a_request_where_the_owner_lets_them(client, folder, tmp_path):
    template = "{{ tone }}:{% for m in messages %}{{ m.content }}{% endfor %}"
    extra = {"chat_template": template, "chat_template_kwargs": {"tone": "kind <|im_end|>"}}
    rendered = f"kind <|im_end|>:{HELLO[0]['content']}"
    with Server(app_of(folder, tmp_path, llm_request_templates=True)) as lenient:
        found = say(lenient.client, extra_body={**extra, "prompt_logprobs": 0})
        with pytest.raises(openai.BadRequestError, match="can't be read") as caught:
            say(lenient.client, extra_body={"chat_template": "{% if %}"})
    assert "".join(next(iter(one.values()))["decoded_token"] for one in found.prompt_logprobs[1:]) == rendered[1:]
    assert caught.value.param == "chat_template"
    for body, match in (
        (extra, "REQUEST_TEMPLATES"), ({"chat_template_kwargs": {"tools": []}}, "field of its own"),
        ({"reasoning_effort": "high"}, "no switch"),
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError, match=match):
            say(client, extra_body=body)
    assert say(client, extra_body={"reasoning_effort": "none"}).choices == say(client).choices


def _call(client, route, body, **extra):
    return client.post(route.removeprefix("/v1"), body={**body, **extra}, cast_to=dict[str, object])


def check_unknown_fields(client, route, body):
    found = _call(client, route, body, frobnicate=1, modle=2, user="me", safety_identifier="x")
    names = ("'frobnicate'", "'modle' (did you mean 'model'?)")
    assert found["warnings"] == [f"There is no field {name}: it was ignored." for name in names]
    assert _call(client, route, body).get("warnings") is None


def check_nested_fields(client, route, body, named):
    found = _call(client, route, body)["warnings"]
    assert [one.removeprefix("There is no field '").partition(")")[0].split(":")[0] for one in sorted(found)] == named
    with pytest.raises(openai.BadRequestError, match="There is no field"):
        _call(client, route, body, strict=True)


def check_known_fields(client, route, body, model):
    """Fields that are not served are refused by name unless they ask for nothing."""
    refused = [name for name in REFUSED if find_fate(name, model)[0] == "refused" and "." not in name]
    for name in refused:
        default = REFUSED[name].default
        value = False if default is True else ["x"] if isinstance(default, list) else "x"
        with pytest.raises(openai.BadRequestError) as caught:
            _call(client, route, body, **{name: value})
        assert (caught.value.param, REFUSED[name].hint in caught.value.message) == (name, True)
    _call(client, route, body, **{name: REFUSED[name].default for name in refused})
    if model is not EmbeddingsRequest:
        with pytest.raises(openai.BadRequestError, match="frobnicate"):
            _call(client, route, body, frobnicate=1, strict=True)


def check_fields_of_peers(route, model, params):
    peers = PEERS[route]
    assert set(params.__annotations__) <= set(peers["OpenAI"].split())
    names = {name for peer in peers.values() for name in peer.split()}
    assert {name for name in names if find_fate(name, model)[0] == "unknown"} == set()


@pytest.mark.parametrize("route", ROUTES)
def test_fields_of_openai_and_vllm_are_served_refused_or_named(client, route):
    check_fields_of_peers(route, *ROUTES[route])
    check_known_fields(client, route, BODIES[route], ROUTES[route][0])
    check_unknown_fields(client, route, BODIES[route])
    assert not ACCEPTED.keys() & REFUSED.keys()


@pytest.mark.parametrize(("route", "more", "named"), [
    (
        "/v1/chat/completions",
        {
            "messages": [{**HELLO[0], "names": "x", "name": "Ann"}], "response_format": {"tpye": "json_object"},
            "tools": [{"type": "function", "cache_control": {}, "function": {"name": "f", "paramters": {"a": 1}}}],
            "tool_choice": "none", "longctx": {"method": "knorm", "ratio": 0.9},
        },
        ["messages[0].names' (did you mean 'name'?", "response_format.tpye' (did you mean 'type'?",
         "tools[0].function.paramters' (did you mean 'parameters'?"],
    ),
    ("/v1/completions", {"response_format": {"form": "json"}}, ["response_format.form'"]),
])  # fmt: skip
def test_unknown_fields_of_nested_objects_are_named_too(client, route, more, named):
    check_nested_fields(client, route, BODIES[route] | more, named)


def test_answers_that_are_sent_back_as_their_clients_hold_them_ask_for_nothing_unknown(client, roomy):
    (choice,) = say(client, max_tokens=2).choices
    assert say(client, messages=[*HELLO, choice.message.model_dump(), *HELLO], max_tokens=2).warnings is None
    call = {"id": "a", "index": 0, "type": "function", "function": {"name": "f", "arguments": "{}", "parsed": 1}}
    choice_of_f = {"type": "function", "function": {"name": "f", "nmae": "f"}, "mode": "auto"}
    turns = [*HELLO, {"role": "assistant", "tool_calls": [call]}, *HELLO]
    tool = {"type": "function", "function": {"name": "f"}}
    found = say(roomy, messages=turns, max_tokens=2, tools=[tool], tool_choice=choice_of_f).warnings
    named = ["messages[1].tool_calls[0].function.parsed", "tool_choice.mode", "tool_choice.function.nmae"]
    assert [one.split("'")[1] for one in found] == named
    assert "no field 'skip'" in _call(client, "/../detokenize", {"tokens": [65]}, skip=1)["warnings"][0]


@pytest.mark.parametrize("arguments", ['{"on": true}', '{"on": tr', "", "[1]", "[[[[["])
def test_a_call_can_be_sent_back_even_if_it_was_cut_off(client, arguments):
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    turns = [{"role": "assistant", "content": None, "tool_calls": [call]},
             {"role": "tool", "tool_call_id": "call_1", "content": "Invalid JSON."}]  # fmt: skip
    assert say(client, messages=[*HELLO, *turns], max_tokens=2).choices


def test_a_stream_names_unknown_fields_at_its_end(client):
    unknown = {"extra_body": {"frobnicate": 1}, "stream": True}
    for chunks in (list(say(client, **unknown)), list(go_on(client, **unknown))):
        warned = [getattr(chunk, "warnings", None) is not None for chunk in chunks]
        assert warned == [*[False] * (len(chunks) - 1), True]
    options = {"stream": True, "max_tokens": 2}
    chunks = list(say(client, extra_body={"stream_options": {"include_obfuscation": False, "eager": 1}}, **options))
    assert chunks[-1].warnings == ["There is no field 'stream_options.eager': it was ignored."]


def test_each_chunk_has_the_usage_so_far_where_a_stream_asks_for_it(client):
    options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    for chunks in (list(say(client, max_tokens=3, **options)), list(go_on(client, max_tokens=3, **options))):
        told = [chunk.usage.completion_tokens for chunk in chunks]
        assert (told[0], told[-1], told) == (1, 3, sorted(told))
        prompts = {chunk.usage.total_tokens - count for chunk, count in zip(chunks, told, strict=True)}
        assert prompts == {chunks[-1].usage.prompt_tokens}
