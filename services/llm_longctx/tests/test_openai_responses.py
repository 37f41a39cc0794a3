"""Responses and embeddings by the `openai` package, against the app under uvicorn on a tiny model."""

import base64
import json
import threading
import time

import numpy as np
import openai
import pytest

from services.llm_longctx.api import embeddings, responses
from services.llm_longctx.models.all_minilm import AllMiniLM
from services.llm_longctx.serving import response_store
from services.llm_longctx.tests.conftest import MODEL, Server, app_of, say, write_folder
from shared.lm.bundled_models import MINILM
from shared.lm.embedder import load_embedder

SWITCH = {"properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": False}
TOOL = {"type": "function", "name": "switch", "parameters": {"type": "object", **SWITCH}, "strict": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("responses") / "Tiny Llama", positions=1024)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.0, "top_k": 5}))
    extra = (responses.router, embeddings.router)
    app = app_of(folder, tmp_path_factory.mktemp("data"), *extra, also={MINILM: AllMiniLM})
    with Server(app) as running:
        yield running


def test_a_text_is_answered_like_the_same_chat(client):
    answer = client.responses.create(model=MODEL, input="Hello", instructions="Be brief.", max_output_tokens=12)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    chat = say(client, messages=turns, max_tokens=12)
    assert answer.output_text == chat.choices[0].message.content
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (chat.usage.prompt_tokens, 12)
    assert answer.id.startswith("resp_")


def test_the_events_of_a_stream_make_the_same_response(client):
    whole = client.responses.create(model=MODEL, input="Hello", max_output_tokens=12)
    with client.responses.stream(model=MODEL, input="Hello", max_output_tokens=12) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"
    ]  # fmt: skip
    assert kinds[-1] == "response.incomplete"
    assert [event.sequence_number for event in events] == sorted(event.sequence_number for event in events)
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text


def test_a_forced_function_is_called_and_its_result_goes_on(client):
    options = {"model": MODEL, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    answer = client.responses.create(input="On?", max_output_tokens=300, **options)
    (call,) = answer.output
    assert (call.type, call.name, answer.status) == ("function_call", "switch", "completed")
    assert set(json.loads(call.arguments)) == {"on"}
    events = list(client.responses.create(input="On?", max_output_tokens=300, stream=True, **options))
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(pieces) == call.arguments
    turns = [
        {"role": "user", "content": [{"type": "input_text", "text": "On?"}]},
        call.model_dump(),
        {"type": "function_call_output", "call_id": call.call_id, "output": "done"},
    ]
    assert client.responses.create(model=MODEL, input=turns, max_output_tokens=4).output_text


def test_a_stored_response_is_gone_on_from(client):
    first = client.responses.create(model=MODEL, input="Hello", max_output_tokens=6, store=True)
    assert client.responses.retrieve(first.id).output_text == first.output_text
    went_on = {"input": "And then?", "previous_response_id": first.id, "max_output_tokens": 8, "model": MODEL}
    second = client.responses.create(**went_on, store=True)
    said = {"role": "assistant", "content": first.output_text}
    turns = [{"role": "user", "content": "Hello"}, said, {"role": "user", "content": "And then?"}]
    chat = say(client, messages=turns, max_tokens=8)
    assert second.output_text == chat.choices[0].message.content
    assert (second.previous_response_id, second.usage.input_tokens) == (first.id, chat.usage.prompt_tokens)
    with client.responses.stream(**went_on) as stream:
        assert list(stream)[-1].response.output_text == second.output_text
    items = client.responses.input_items.list(second.id).data
    assert [(item.role, item.content[0].type) for item in items] == [
        ("user", "input_text"), ("assistant", "output_text"), ("user", "input_text"),
    ]  # fmt: skip
    with pytest.raises(openai.BadRequestError, match="exclude each other"):
        client.responses.create(**went_on, extra_body={"session_id": "s"})
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="store: true"):
        client.responses.retrieve(first.id)
    third = client.responses.create(model=MODEL, input="So?", previous_response_id=second.id, max_output_tokens=2)
    assert third.usage.input_tokens > second.usage.input_tokens


def test_the_oldest_stored_responses_of_a_tenant_make_room(server, monkeypatch):
    monkeypatch.setattr(response_store, "MAX_RESPONSES", 2)

    def ask(tenant: str) -> str:
        body = {"model": MODEL, "input": "Hello", "store": True, "max_output_tokens": 4}
        answer = server.http.post("/v1/responses", json=body, headers={"x-fovea-tenant": tenant})
        return f"/v1/responses/{answer.json()['id']}"

    others, found = ask("others"), [ask("much") for _ in range(4)]
    seen = [server.http.get(url, headers={"x-fovea-tenant": "much"}).status_code for url in found]
    assert seen == [404, 404, 200, 200]
    assert server.http.get(others, headers={"x-fovea-tenant": "others"}).status_code == 200


def test_ids_of_items_that_are_no_text_are_given_anew(client, server):
    body = {"model": MODEL, "max_output_tokens": 2, "store": True}
    body["input"] = [{"id": 5, "role": "user", "content": "Hello"}, {"id": "mine", "role": "user", "content": "!"}]
    stored = server.http.post("/v1/responses", json=body).json()
    first, second = client.responses.input_items.list(stored["id"]).data
    assert first.id.startswith("msg_")
    assert second.id == "mine"


@pytest.mark.parametrize("field", ["metadata", "tool_choice", "extra"])
def test_halves_of_characters_are_no_fault_of_the_server(server, field):
    given = {"metadata": {"a": "HALF"}, "tool_choice": {"a": "HALF"}, "extra": "HALF"}[field]
    body = json.dumps({"input": "Hello", "max_output_tokens": 2, "store": True, field: given})
    headers = {"content-type": "application/json"}
    answer = server.http.post("/v1/responses", content=body.replace("HALF", "\\ud800"), headers=headers, timeout=60)
    assert answer.status_code == 400, answer.text
    assert "surrogate" in answer.json()["error"]["message"]


def test_what_is_not_to_be_stored_is_not_and_a_stream_is_stored_before_it_says_that_it_is_complete(client):
    answer = client.responses.create(model=MODEL, input="Hello", max_output_tokens=2)
    for unknown in (answer.id, "resp_1", "resp_..%2f"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.responses.create(model=MODEL, input="And?", previous_response_id=unknown)
        assert caught.value.param == "previous_response_id"
    for event in client.responses.create(model=MODEL, input="Hello", max_output_tokens=4, stream=True, store=True):
        if event.type in {"response.completed", "response.incomplete"}:
            assert client.responses.retrieve(event.response.id).output_text == event.response.output_text
            return
    pytest.fail("the stream has no end")


def test_what_a_request_leaves_out_is_the_models_own(server, client):
    """This model's generation config is greedy."""
    texts = {say(client, temperature=openai.omit).choices[0].message.content for _ in range(3)}
    assert len(texts) == 1
    assert len({say(client, temperature=1.5).choices[0].message.content for _ in range(3)}) > 1
    card = server.http.get(f"/v1/models/{MODEL}").json()
    assert card["sampling"] | {"top_k": 5, "temperature": 0.0} == card["sampling"]


def test_small_print(server, client):
    options = {"service_tier": "auto", "metadata": {"a": "b"}, "store": False, "max_completion_tokens": 3}
    assert say(client, **options).usage.completion_tokens == 3
    long = [{"role": "user", "content": "word " * 60}]
    say(client, messages=long)
    usage = say(client, messages=long).usage
    assert usage.prompt_tokens_details.cached_tokens > 0
    assert usage.longctx["context_left"] == 1024 - usage.total_tokens
    assert say(client, n=2).usage.longctx["context_left"] is None
    assert server.http.get("/health").status_code == 200
    assert server.http.get("/version").json()["version"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["completions", "responses"])
def test_a_stream_that_goes_on_outlives_the_deadline_of_a_whole_answer(server, monkeypatch, path, stream):
    backend = server.app.state.host.servable(MODEL).adapter.scheduler.backend
    decode = backend.decode_batch
    monkeypatch.setattr(backend, "decode_batch", lambda batch: (time.sleep(0.05), decode(batch))[1])
    asks = {"completions": {"prompt": "a", "max_tokens": 20}, "responses": {"input": "a", "max_output_tokens": 20}}
    body, limits = {"stream": stream, "ignore_eos": True}, {"x-fovea-deadline-ms": "600", "x-fovea-stream-ms": "0"}
    answer = server.http.post(f"/v1/{path}", json=asks[path] | body, headers=limits)
    assert answer.status_code == (200 if stream else 504)
    assert ("FOVEA_REQUEST_TIMEOUT_S" in answer.text) is not stream
    if stream:
        assert {"completions": "data: [DONE]", "responses": "response.incomplete"}[path] in answer.text


def test_a_decoders_embeddings_are_means_of_its_states(client):
    rows = client.embeddings.create(model=MODEL, input=["Hello there", "Bye"])
    assert rows.usage.prompt_tokens == 14
    vectors = np.array([row.embedding for row in rows.data])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    alone = np.array(client.embeddings.create(model=MODEL, input="Bye").data[0].embedding)
    np.testing.assert_allclose(vectors[1], alone, atol=1e-6)
    ids = client.embeddings.create(model=MODEL, input=list(b"Hello there")).data[0].embedding
    assert len(ids) == 32


def test_the_embedding_model_knows_what_is_alike(server, client):
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Shares fell on Monday."]
    cat, kitten, shares = (np.array(row.embedding) for row in client.embeddings.create(model=MINILM, input=texts).data)
    assert cat @ kitten > 0.5
    assert cat @ shares < 0.2
    short = client.embeddings.create(model=MINILM, input=texts, dimensions=64).data[0].embedding
    np.testing.assert_allclose(short, cat[:64] / np.linalg.norm(cat[:64]), atol=1e-5)
    body = {"model": MINILM, "input": texts[0], "encoding_format": "base64"}
    raw = server.http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(raw), "<f4"), cat, atol=1e-5)
    assert server.http.post("/v1/embeddings", json={"input": "a"}).json()["model"] == MINILM
    body = {"model": MINILM, "input": "word " * 400, "truncate": True}
    cut = server.http.post("/v1/embeddings", json=body).json()
    assert cut["usage"]["prompt_tokens"] == 256
    np.testing.assert_allclose(cut["data"][0]["embedding"], load_embedder().embed(["word " * 400])[0], atol=1e-5)


@pytest.mark.parametrize("model", [MINILM, MODEL])
def test_a_text_of_megabytes_is_refused_or_cut_before_it_is_tokenized(server, model):
    begun, body = time.process_time(), {"model": model, "input": "word " * 1_000_000}
    answer = server.http.post("/v1/embeddings", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    cut = server.http.post("/v1/embeddings", json={**body, "truncate": True}).json()
    short = server.http.post("/v1/embeddings", json={**body, "input": "word " * 1100, "truncate": True}).json()
    assert cut["usage"] == short["usage"]
    np.testing.assert_allclose(cut["data"][0]["embedding"], short["data"][0]["embedding"], atol=1e-5)
    assert time.process_time() - begun < 4  # the tokenizer alone takes 13 s


def test_other_threads_go_on_while_a_text_is_tokenized():
    library, waits, is_over = load_embedder(), [], threading.Event()

    def watch():
        while not is_over.is_set():
            begun = time.perf_counter()
            time.sleep(0.001)
            waits.append(time.perf_counter() - begun)

    thread = threading.Thread(target=watch)
    thread.start()
    begun = time.perf_counter()
    library.tokenize("word " * 100_000)
    took = time.perf_counter() - begun
    is_over.set()
    thread.join()
    assert max(waits) < took / 2
