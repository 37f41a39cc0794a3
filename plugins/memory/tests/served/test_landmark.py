"""Landmark and byte models behind OpenAI's routes: documents are read once, answers cited, knobs checked."""

import json
from types import SimpleNamespace

import pytest
import torch

from fovea_memory.models.fovea_routing_bytes import _observe_occupancy
from fovea_memory.routes import documents, sessions
from fovea_memory.state.document_cache import CHECKPOINT_TOKENS
from fovea_memory.toy_tokenizers import FILLERS
from plugins.memory.tests.served.conftest import metric
from services.llm_longctx.tests.test_state_loading import fields_of
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.openapi_fuzz import fuzz

MODEL = "fovea-landmark-recall"
FILL = " ".join([FILLERS] * 20)
TEXT = f"{FILL} dog red {FILL} owl teal {FILL}"


def _send(http, path, **body):
    answer = http.post(f"/v1/{path}", json={"model": MODEL, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def _complete(http, prompt, **more):
    return _send(http, "completions", prompt=prompt, **{"max_tokens": 1, "temperature": 0, "logprobs": 20, **more})


def _store(http, text=TEXT, **more):
    return _send(http, "documents", text=text, **more)


def _top(answer):
    return answer["choices"][0]["logprobs"]["top_logprobs"]


def _alike(ours, theirs, tolerance=1e-4):
    for one, other in zip(_top(ours), _top(theirs), strict=True):
        assert {k for k, v in one.items() if v > -20} <= other.keys() | {k for k, v in one.items() if v < -15}
        assert all(abs(one[k] - other[k]) < tolerance for k in one.keys() & other.keys())


def test_question_about_a_document_is_answered_as_if_all_had_been_sent(http):
    document = _store(http)
    assert (document["tokens"], document["blocks"]) == (len(TEXT.split()), document["tokens"] // 8)
    assert metric(http, "landmark_blocks_resident") > 0
    whole = _complete(http, f"{TEXT} ? dog", max_tokens=3)
    asked = _complete(http, "? dog", max_tokens=3, document_id=document["id"])
    assert asked["choices"][0]["text"] == whole["choices"][0]["text"]
    _alike(asked, whole)
    assert asked["usage"]["prompt_tokens"] == document["tokens"] + 2
    assert asked["usage"]["longctx"]["cached_tokens"] == document["tokens"] // CHECKPOINT_TOKENS * CHECKPOINT_TOKENS
    assert whole["usage"]["longctx"]["cached_tokens"] == 0


def test_a_prompt_behind_a_document_is_scored_as_if_all_had_been_sent(http):
    document = _store(http)
    whole = _complete(http, f"{TEXT} ? dog", prompt_logprobs=0)["choices"][0]["prompt_logprobs"]
    asked = _complete(http, "? dog", document_id=document["id"], prompt_logprobs=0)["choices"][0]["prompt_logprobs"]
    assert [list(one or ()) for one in asked] == [list(one or ()) for one in whole]
    for ours, theirs in zip(asked[1:], whole[1:], strict=True):
        values = [[one["logprob"] for one in each.values()] for each in (ours, theirs)]
        assert values[0] == pytest.approx(values[1], abs=1e-3)


def test_citations_point_at_what_was_read(http):
    document = _store(http)
    told = _complete(http, "and of the ? dog", max_tokens=2, document_id=document["id"], longctx={"blocks": 3})
    told = told["longctx"]
    assert told["citations"]
    assert sum(c["weight"] for c in told["citations"]) <= 1 + 1e-9
    for cited in told["citations"]:
        assert (cited["end"] - cited["start"], cited["start"]) == (8, 8 * cited["block"])
        source = TEXT if cited["document"] == document["id"] else "and of the ? dog"
        assert source[cited["char_start"] : cited["char_end"]] == cited["text"]
    inside = [c for c in told["citations"] if c["end"] <= document["tokens"]]
    assert all(c["document"] == document["id"] and len(c["text"].split()) == 8 for c in inside)
    # One layer behind the first, four heads, two tokens, three blocks each.
    assert sum(c["hits"] for c in told["citations"]) <= 1 * 4 * 2 * 3
    assert len(told["cited_tokens"]) == 2
    assert {b for token in told["cited_tokens"] for b in token["blocks"]} >= {c["block"] for c in told["citations"]}
    assert told["blocks_total"] >= document["blocks"]
    assert (told["state_version"], _complete(http, "? dog", longctx={"cite": False})["longctx"]["citations"]) == (1, [])


def test_cited_tokens_are_those_of_the_first_choice_also_where_the_second_ended_before(http):
    how = {"n": 2, "temperature": 2, "seed": 1, "max_tokens": 6, "logprobs": 0}
    first, second = (one["logprobs"]["tokens"] for one in _complete(http, f"{TEXT} ? dog", **how)["choices"])
    stop = next(token for token in second[:3] if token.strip() not in "".join(first))
    told = _complete(http, f"{TEXT} ? dog", stop=[stop.strip()], **how)
    assert [one["finish_reason"] for one in told["choices"]] == ["length", "stop"]
    assert [one["token"] for one in told["longctx"]["cited_tokens"]] == first


def test_stream_carries_its_citations_in_the_last_chunk(http):
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"{TEXT} ? dog"}], "max_tokens": 2, "stream": True}
    for usage in (False, True):
        asked = {**body, "stream_options": {"include_usage": usage}}
        lines = [line[6:] for line in http.post("/v1/chat/completions", json=asked).text.split("\n\n") if line]
        assert lines[-1] == "[DONE]"
        chunks = [json.loads(line) for line in lines[:-1]]
        assert chunks[-1]["longctx"]["citations"]
        assert bool(chunks[-1]["choices"]) is not usage
        assert not any("longctx" in chunk for chunk in chunks[: -1 - usage])


def _refused(http, path, **body):
    answer = http.post(f"/v1/{path}", json={"model": MODEL, **body})
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


@pytest.mark.parametrize(("knobs", "param"), [
    ({"block": 2}, "longctx.block"), ({"method": "duo"}, "longctx.method"), ({"blocks": 0}, "longctx.blocks"),
    ({"selection": "best"}, "longctx.selection"), ({"offload": "tape"}, "longctx.offload"),
    ({"capacity": 0}, "longctx.capacity"), ({"knobs": {"speed": 1}}, "longctx.speed"),
])  # fmt: skip
def test_unknown_knobs_are_refused_by_name(http, knobs, param):
    error = _refused(http, "completions", prompt="? dog", longctx=knobs)
    assert (error["param"], param.removeprefix("longctx.") in error["message"]) == (param, True)
    assert _refused(http, "documents", text=FILL, longctx=knobs)["param"] == param


def test_empty_blocks_unknown_words_and_more_than_the_context_are_refused(http):
    for prompt in ([1, 41, 41, 2], [41]):
        assert "landmark" in _refused(http, "completions", prompt=prompt)["message"]
    error = _refused(http, "completions", prompt="the zebra")
    assert (error["param"], "'zebra' is not a word" in error["message"]) == ("prompt", True)
    for path, body in (("completions", {"prompt": [1] * 32_769}), ("documents", {"text": "the " * 32_769})):
        assert _refused(http, path, **body)["code"] == "context_length_exceeded"


def test_document_of_one_model_is_no_others(http):
    asked = {"prompt": "? dog", "document_id": _store(http)["id"]}
    assert _refused(http, "completions", **asked, model="fovea-titans-mac")["param"] == "model"
    assert _refused(http, "completions", **asked, longctx={"offload": "cpu"})["param"] == "longctx.offload"


BYTES = ("fovea-routing-bytes", "fovea-hybrid-nonapproximate")
PROGRAM = "def main() -> None:\n    print('ä')\n"


@pytest.mark.parametrize("model", [pytest.param(BYTES[0], marks=pytest.mark.release), BYTES[1]])
def test_context_is_the_limit_of_what_it_reads_and_says(http, adapter, model):
    context = adapter(model).context
    answer = http.post("/v1/completions", json={"model": model, "prompt": "x" * (context - 2), "max_tokens": 50})
    assert answer.json()["usage"]["completion_tokens"] == 2
    answer = http.post("/v1/completions", json={"model": model, "prompt": "x" * (context + 1)})
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_hybrid_shows_its_layers_beside_the_dense_twin(http):
    card = http.get("/v1/models/fovea-hybrid-nonapproximate").json()["details"]
    assert card["layout"] == ["nonapproximate", "standard"] * 2
    assert card["cache_bytes"][0] < card["cache_bytes"][1] / 100
    assert card["cache_bytes_per_token_total"] < 0.51 * card["dense_twin"]["cache_bytes_per_token_total"]


def test_states_and_clusters_are_measured(http):
    for model in BYTES:
        http.post("/v1/completions", json={"model": model, "prompt": PROGRAM, "max_tokens": 4})
    lines = [x for x in http.get("/metrics").text.splitlines() if x.startswith("mixer_state_bytes{")]
    held = {line.partition('variant="')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in lines}
    assert 0 < held["nonapproximate"] < held["standard"]
    assert metric(http, "routing_cluster_occupancy") > 0
    assert 0 <= (before := metric(http, "routing_alone_ratio")) <= 1
    _observe_occupancy("another", SimpleNamespace(occupancy=[torch.tensor([[[5, 1, 0]]])]))
    assert metric(http, "routing_alone_ratio") - before == pytest.approx(1 / 6)


def test_documents_are_affine_and_sessions_are_not():
    assert set(fields_of(documents, sessions)["affine"]) == {"/v1/documents/{document_id}"}


def change(body):
    """Without a model of its own, or nearly every request would stop at an unknown one."""
    return body | {"model": None} if isinstance(body, dict) and "model" in body else body


def test_no_request_that_the_document_allows_is_a_server_error(mixers):
    app = build("llm-longctx", servables={}, settings=Settings())
    fuzz(app.openapi(), mixers.url, 6, "/v1/sessions", "/v1/documents", change=change)
