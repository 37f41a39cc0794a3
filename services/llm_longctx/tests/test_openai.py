"""Conformance with the `openai` package, against the app under uvicorn on a tiny model."""

import json
import math

import openai
import pytest

from services.llm_longctx.tests.conftest import HELLO, MODEL, go_on, say, text_of
from services.llm_longctx.tests.tiny_models import CHAT, CONTEXT


def test_the_served_model_is_listed_and_answers_a_chat_with_its_usage(client):
    (model,) = client.models.list().data
    assert (model.id, model.object, client.models.retrieve(MODEL).id) == (MODEL, "model", MODEL)
    answer, prompt = say(client), len("<user>Hello, who are you?\n<assistant>")
    (choice,), usage = answer.choices, answer.usage
    assert (answer.object, answer.id[:9], answer.model) == ("chat.completion", "chatcmpl-", MODEL)
    assert answer.system_fingerprint.endswith("fp32")
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "length", "assistant")
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (prompt, 16, prompt + 16)


def test_a_stream_says_what_the_whole_answer_says(client):
    for options in ({}, {"temperature": 1.0, "seed": 0}, {"n": 3, "seed": 1, "temperature": 1.0}, {"logprobs": True}):
        whole = say(client, **options)
        texts, reasons, roles, scored = {}, {}, [], {}
        for chunk in say(client, stream=True, **options):
            assert chunk.object == "chat.completion.chunk"
            assert chunk.usage is None
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
                reasons[choice.index] = choice.finish_reason
                roles += [choice.delta.role] if choice.delta.role else []
                scored.setdefault(choice.index, []).extend(choice.logprobs.content if choice.logprobs else [])
        assert texts == {c.index: c.message.content for c in whole.choices}
        assert reasons == {c.index: c.finish_reason for c in whole.choices}
        assert roles == ["assistant"] * len(set(texts.values())) == ["assistant"] * len(whole.choices)
        if options.get("logprobs"):
            assert scored == {c.index: c.logprobs.content for c in whole.choices}


def test_the_events_are_openais_to_the_byte(server):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    body = {"messages": HELLO, "max_tokens": 2, "temperature": 0, **options}
    answer = server.http.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done, end = answer.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert len({(c["id"], c["created"], c["model"], c["system_fingerprint"]) for c in chunks}) == 1
    (first, *_, last, usage), empty = chunks, {"index": 0, "delta": {}, "logprobs": None}
    assert first["choices"] == [empty | {"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
    assert last["choices"] == [empty | {"finish_reason": "length"}]
    assert all(c["usage"] is None for c in chunks[:-1])
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 2)
    assert '"usage"' not in server.http.post("/v1/chat/completions", json=body | {"stream_options": None}).text


def test_without_a_limit_the_answer_ends_with_the_context(client):
    answer = say(client, max_tokens=openai.omit)
    assert (answer.usage.total_tokens, answer.choices[0].finish_reason) == (CONTEXT, "length")
    assert say(client, max_tokens=10_000).usage.total_tokens == CONTEXT


def test_log_probabilities_belong_to_the_shown_text(client):
    text = text_of(client, max_tokens=30)
    answer = say(client, max_tokens=30, stop=text[5:8], logprobs=True, top_logprobs=4).choices[0]
    tokens = answer.logprobs.content
    assert bytes(b for t in tokens for b in t.bytes).decode(errors="replace") == answer.message.content == text[:5]
    for token in tokens:
        assert len(token.top_logprobs) == 4
        assert token.top_logprobs[0].logprob >= token.logprob
        assert sum(math.exp(t.logprob) for t in token.top_logprobs) <= 1 + 1e-5
    assert say(client).choices[0].logprobs is say(client, top_logprobs=0).choices[0].logprobs is None
    assert say(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


def test_our_own_knobs_text_parts_developer_messages_and_nulls_are_understood(client):
    cold = text_of(client, temperature=2.0, extra_body={"top_k": 1})
    assert cold == text_of(client, temperature=2.0, extra_body={"min_p": 1.0})
    assert cold == text_of(client, temperature=2.0, top_p=0) == text_of(client)
    parts = [{"type": "text", "text": text} for text in ("Hello, ", "who are you?")]
    assert say(client, messages=[{"role": "user", "content": parts}]).choices == say(client).choices
    developer, system = ([{"role": r, "content": "Be brief."}, *HELLO] for r in ("developer", "system"))
    assert say(client, messages=developer).choices == say(client, messages=system).choices
    body = {"temperature": None, "stop": None, "logit_bias": None}
    assert say(client, extra_body=body | {"temperature": 0}).choices == say(client).choices


def test_prompts_may_be_texts_or_token_ids_one_or_many(client, server):
    ids = [server.http.post("/tokenize", json={"prompt": text}).json()["tokens"] for text in ("ab", "xyz")]
    texts = go_on(client, ["ab", "xyz"], n=2)
    assert (texts.object, [c.index for c in texts.choices]) == ("text_completion", [0, 1, 2, 3])
    assert go_on(client, ids, n=2).choices == texts.choices
    assert go_on(client, ids[1]).choices[0].text == go_on(client, "xyz").choices[0].text == texts.choices[2].text
    assert (texts.usage.prompt_tokens, texts.usage.completion_tokens) == (5, 48)


def test_echo_with_log_probabilities_scores_a_prompt(client):
    answer = go_on(client, "Once upon", echo=True, logprobs=3, max_tokens=0)
    (choice,), score = answer.choices, answer.choices[0].logprobs
    assert (choice.text, choice.finish_reason, answer.usage.completion_tokens) == ("Once upon", "length", 0)
    assert (score.tokens, score.text_offset) == (list("Once upon"), list(range(9)))
    assert score.token_logprobs[0] is score.top_logprobs[0] is None
    assert all(lp < 0 for lp in score.token_logprobs[1:])
    longer = go_on(client, "Once upon a time", echo=True, logprobs=0, max_tokens=2).choices[0].logprobs
    assert longer.token_logprobs[1:9] == pytest.approx(score.token_logprobs[1:], abs=1e-4)
    assert len(longer.tokens) == len("Once upon a time") + 2


def test_an_empty_prompt_begins_with_the_models_own_token_and_a_full_one_has_no_answer(client):
    answer = go_on(client, "", max_tokens=3)
    assert answer.usage.prompt_tokens == 1
    assert go_on(client, "", echo=True, max_tokens=3).choices[0].text == answer.choices[0].text
    full = go_on(client, "x" * CONTEXT)
    assert (full.choices[0].text, full.choices[0].finish_reason, full.usage.completion_tokens) == ("", "length", 0)
    assert go_on(client, "x" * (CONTEXT - 1)).usage.completion_tokens == 1


def test_tokens_and_text_go_there_and_back_conversations_under_their_template(server):
    told = server.http.post("/tokenize", json={"prompt": "Grüße 😀"}).json()
    assert told["count"] == len(told["tokens"]) == len("Grüße 😀".encode())
    assert told["max_model_len"] == CONTEXT
    assert server.http.post("/detokenize", json={"tokens": told["tokens"]}).json() == {"prompt": "Grüße 😀"}
    texts = server.http.post("/tokenize", json={"prompt": "Hi!", "return_token_strs": True}).json()
    assert texts["token_strs"] == ["H", "i", "!"]
    for generate, end in ((True, "<assistant>"), (False, "")):
        told = server.http.post("/tokenize", json={"messages": HELLO, "add_generation_prompt": generate}).json()
        assert (told["prompt"], told["count"]) == (f"<user>Hello, who are you?\n{end}", len(told["prompt"]))


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    "more",
    [
        {}, {"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": "none"}, {"add_special_tokens": None},
        {"messages": [*HELLO, {"role": "assistant", "content": "I am"}], "continue_final_message": True},
        {"messages": [{"role": "user", "content": "an <|im_end|>"}], "tools": None},
    ],
)  # fmt: skip
def test_a_conversation_has_the_tokens_that_its_chat_reads(roomy, more):
    body = {"messages": HELLO} | more
    told = roomy.post("/../tokenize", body=body, cast_to=dict)
    asked = roomy.post("/chat/completions", body=body | {"max_tokens": 1, "prompt_logprobs": 0}, cast_to=dict)
    assert (told["count"], told["warnings"]) == (asked["usage"]["prompt_tokens"], None)
    spelled = [next(iter(one.values()))["decoded_token"] for one in asked["prompt_logprobs"][1:]]
    assert told["prompt"][1:] == "".join(spelled)


def test_fields_that_change_no_token_are_named(server):
    told = server.http.post("/tokenize", json={"messages": HELLO, "tolls": [], "n": "x"}).json()
    names = ("'tolls' (did you mean 'tools'?)", "'n'")
    assert told["warnings"] == [f"There is no field {name}: it was ignored." for name in names]
    for bad in ({"messages": []}, {"messages": HELLO, "tool_choice": "required"}, {"prompt": "a", "messages": HELLO}):
        assert server.http.post("/tokenize", json=bad).status_code == 400


def test_facts_of_the_tokenizer_are_those_that_clients_of_vllm_read(server):
    told = server.http.get("/tokenizer_info").json()
    assert (told["eos_token"], told["bos_token"], told["model_max_length"]) == ("<|im_end|>", None, CONTEXT)
    assert told["chat_template"] == CHAT
    assert server.http.get("/tokenizer_info?model=nobody").status_code == 404
