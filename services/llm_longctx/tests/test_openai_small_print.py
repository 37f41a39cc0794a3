"""Small print of OpenAI's routes, and embeddings, by the `openai` package on a tiny model under uvicorn."""

import base64
import json
import threading
import time

import numpy as np
import openai
import pytest

from fovea.api.replica import SCOPES_HEADER
from fovea.api.text import Completion, CompletionChoice, CompletionLogprobs, Usage
from fovea.api.usage import read_header
from services.llm_longctx.api import embeddings
from services.llm_longctx.models.all_minilm import AllMiniLM
from services.llm_longctx.serving.completions import TextCompletionProtocol
from services.llm_longctx.serving.embeddings import DecoderEmbedder
from services.llm_longctx.tests.conftest import MODEL, Server, app_of, say, text_of, write_folder
from shared.lm.bundled_models import MINILM
from shared.lm.embedder import load_embedder
from tests.harness.waiting import wait_until as until


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("small") / "Tiny Llama", positions=1024)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.0, "top_k": 5}))
    app = app_of(folder, tmp_path_factory.mktemp("data"), embeddings.router, also={MINILM: AllMiniLM})
    with Server(app) as running:
        yield running


def test_what_a_request_leaves_out_is_the_models_own(server, client):
    """This model's generation config is greedy."""
    assert len({text_of(client, temperature=openai.omit) for _ in range(3)}) == 1
    assert len({text_of(client, temperature=1.5) for _ in range(3)}) > 1
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


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_a_gateway_learns_the_tokens_of_a_stream_that_does_not_state_them(server, route):
    chat = {"messages": [{"role": "user", "content": "Hello"}]} if "chat" in route else {"prompt": "Hello"}
    body = {**chat, "max_tokens": 3, "ignore_eos": True}
    usage = server.http.post(route, json=body).json()["usage"]
    alone = server.http.post(route, json={**body, "stream": True})
    asked = server.http.post(route, json={**body, "stream": True}, headers={SCOPES_HEADER: "infer"})
    assert ": usage" not in alone.text
    first, last = (read_header(one[8:]) for one in asked.text.split("\n") if one.startswith(": usage {"))
    assert (first["tokens_in"], "tokens_out" in first) == (usage["prompt_tokens"], False)
    assert (last["tokens_in"], last["tokens_out"]) == (usage["prompt_tokens"], 3)
    assert asked.text.endswith("}\n\ndata: [DONE]\n\n")


def test_a_decoders_embeddings_are_means_of_its_states(client):
    rows = client.embeddings.create(model=MODEL, input=["Hello there", "Bye"])
    assert rows.usage.prompt_tokens == 14
    vectors = np.array([row.embedding for row in rows.data])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    alone = np.array(client.embeddings.create(model=MODEL, input="Bye").data[0].embedding)
    np.testing.assert_allclose(vectors[1], alone, atol=1e-6)
    assert len(client.embeddings.create(model=MODEL, input=list(b"Hello there")).data[0].embedding) == 32


def test_a_decoders_embeddings_end_with_their_deadline(server, monkeypatch):
    read, mean = [], DecoderEmbedder._mean_state
    monkeypatch.setattr(DecoderEmbedder, "_mean_state", lambda *a: (read.append(1), time.sleep(0.05), mean(*a))[2])
    body, limits = {"model": MODEL, "input": ["a"] * 40}, {"x-fovea-deadline-ms": "300"}
    assert server.http.post("/v1/embeddings", json=body, headers=limits).status_code == 504
    until(lambda: server.app.state.host.busy == 0, 2)
    assert len(read) < 20


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


def check_deadline(server, monkeypatch, route, body, *, stream, end):
    """The time of a whole answer is bounded; a stream that goes on is not cut."""
    backend = server.app.state.host.servable(MODEL).adapter.scheduler.backend
    decode = backend.decode_batch
    monkeypatch.setattr(backend, "decode_batch", lambda batch: (time.sleep(0.05), decode(batch))[1])
    limits = {"x-fovea-deadline-ms": "600", "x-fovea-stream-ms": "0"}
    answer = server.http.post(route, json={**body, "stream": stream, "ignore_eos": True}, headers=limits)
    assert answer.status_code == (200 if stream else 504)
    assert ("FOVEA_REQUEST_TIMEOUT_S" in answer.text) is not stream
    if stream:
        assert end in answer.text


@pytest.mark.parametrize("stream", [True, False])
def test_a_stream_that_goes_on_outlives_the_deadline_of_a_whole_answer(server, monkeypatch, stream):
    body = {"prompt": "a", "max_tokens": 20}
    check_deadline(server, monkeypatch, "/v1/completions", body, stream=stream, end="data: [DONE]")


def test_a_long_answer_with_log_probabilities_is_joined_in_time_that_grows_with_its_length():
    def piece(i):
        scores = CompletionLogprobs(tokens=["a"], token_logprobs=[-1.0], top_logprobs=[{"a": -1.0}], text_offset=[i])
        choice = CompletionChoice(index=0, text="a", logprobs=scores)
        return Completion(id="cmpl-1", created=0, model="m", choices=[choice], usage=usage)

    usage = Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2)
    pieces, begun = [piece(i) for i in range(6000)], time.process_time()
    (choice,) = TextCompletionProtocol().gather(pieces).choices
    assert time.process_time() - begun < 2  # eleven seconds where each piece copied all before it
    assert (choice.text, choice.logprobs.text_offset) == ("a" * 6000, list(range(6000)))
