"""Titans' sessions behind OpenAI's routes: versions, one writer, answers given once, and no values but numbers."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from fovea_memory.adapters.titans import _TitansSource
from fovea_memory.mixers.titans.state import SessionState, pack_state, unpack_state
from plugins.memory.tests.conftest import KINDS
from plugins.memory.tests.served.conftest import metric

TITANS = sorted(name for name in KINDS if "titans" in name)
MODEL = "fovea-titans-mac"
DEEP = json.loads("[" * 300 + "]" * 300)
SAID = {"model": MODEL, "messages": [{"role": "user", "content": "the dog red of in ? dog"}], "max_tokens": 2}


def _open(http, model=MODEL, **headers):
    answer = http.post("/v1/sessions", json={"model": model}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def _read(http, session, ids, model=MODEL, **more):
    body = {"model": model, "prompt": ids, "max_tokens": 0, "session_id": session, "temperature": 0, **more}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _facts(http, session):
    return http.get(f"/v1/sessions/{session}").json()


def _export(http, session):
    answer = http.get(f"/v1/sessions/{session}/export")
    assert answer.headers["content-type"] == "application/octet-stream"
    return answer.content


def _import(http, session, data):
    headers = {"content-type": "application/octet-stream"}
    return http.post(f"/v1/sessions/{session}/import", content=data, headers=headers)


def test_session_has_read_the_answers_too_and_stays_of_one_size(http):
    session = _open(http)
    before = _facts(http, session)
    told = http.post("/v1/chat/completions", json={**SAID, "session_id": session}).json()
    after = _facts(http, session)
    assert after["tokens"] == 7 + 2
    assert after["state_bytes"] == pytest.approx(before["state_bytes"], abs=8)  # digits in the header
    longctx = told["longctx"]
    assert (longctx["session_id"], longctx["state_version"]) == (session, 1)
    assert (longctx["state_bytes"], longctx["surprise"]["tokens"]) == (after["state_bytes"], 9)
    assert longctx["surprise"]["max"] >= longctx["surprise"]["mean"] > 0
    assert metric(http, "titans_state_bytes") > 0


def test_retry_is_answered_as_before_and_memorises_nothing(http):
    session, key = _open(http), {"idempotency-key": "once"}
    body = {**SAID, "session_id": session, "temperature": 1}
    first = http.post("/v1/chat/completions", json=body, headers=key)
    again = http.post("/v1/chat/completions", json=body, headers=key)
    assert (again.headers["idempotency-replayed"], again.json()) == ("true", first.json())
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    lines = http.post("/v1/chat/completions", json=streamed, headers=key).text.split("\n\n")
    chunks = [json.loads(line[6:]) for line in lines if line and "[DONE]" not in line]
    assert chunks[0]["choices"][0]["delta"]["content"] == first.json()["choices"][0]["message"]["content"]
    assert (chunks[-1]["usage"], _facts(http, session)["version"]) == (first.json()["usage"], 1)
    assert http.post("/v1/chat/completions", json={**body, "max_tokens": 3}, headers=key).status_code == 409


def test_of_requests_at_once_only_those_that_are_answered_are_remembered(http):
    session = _open(http)
    body = {"model": MODEL, "prompt": [1] * 300, "max_tokens": 0, "session_id": session}
    conflicts = metric(http, "titans_lock_conflicts_total")
    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(lambda _: http.post("/v1/completions", json=body).status_code, range(4)))
    assert set(statuses) <= {200, 409}
    written = statuses.count(200)
    assert written >= 1
    assert (_facts(http, session)["version"], _facts(http, session)["tokens"]) == (written, 300 * written)
    assert metric(http, "titans_lock_conflicts_total") - conflicts == statuses.count(409)


def test_stream_that_is_left_early_leaves_the_session_as_it_was(http):
    session = _open(http)
    body = {**SAID, "max_tokens": 5000, "session_id": session, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_lines())
    assert _facts(http, session)["version"] == 0


def test_state_that_is_no_number_is_refused_and_the_session_stays(http, adapter):
    session = _open(http)
    _read(http, session, [1, 2, 3])
    state = unpack_state(_export(http, session), adapter(MODEL).digest)
    huge = {k: t + 3e38 if "weights" in k else t for k, t in state.tensors.items()}
    bad = pack_state(SessionState(state.index, 1, huge), adapter(MODEL).digest)
    assert _import(http, session, bad).status_code == 200
    before, counted = _facts(http, session), metric(http, "titans_nonfinite_total")
    answer = http.post("/v1/completions", json={"model": MODEL, "prompt": [5] * 40, "session_id": session})
    assert answer.status_code == 409
    assert "not finite" in answer.json()["error"]["message"] or "kept" in answer.json()["error"]["message"]
    assert (_facts(http, session), metric(http, "titans_nonfinite_total")) == (before, counted + 1)
    rolled = metric(http, "titans_rollbacks_total")
    back = http.post(f"/v1/sessions/{session}/rollback", json={"version": 1}).json()
    assert (back["version"], back["tokens"], metric(http, "titans_rollbacks_total")) == (3, 3, rolled + 1)
    _read(http, session, [4])


def test_other_weights_refuse_old_states(http, adapter):
    session = _open(http)
    stranger = pack_state(unpack_state(_export(http, session), adapter(MODEL).digest), "of another model")
    assert _import(http, session, stranger).status_code == 409
    titans, digest = adapter(MODEL), adapter(MODEL).digest
    try:
        object.__setattr__(titans, "digest", "loaded anew")
        answer = http.post("/v1/chat/completions", json={**SAID, "session_id": session})
        assert answer.status_code == 409
        assert "other weights" in answer.json()["error"]["message"]
    finally:
        object.__setattr__(titans, "digest", digest)


def test_import_takes_what_export_gave_and_nothing_else(http, adapter):
    first, second = _open(http), _open(http)
    _read(http, first, list(range(30)))
    data = _export(http, first)
    assert _import(http, second, data).json()["tokens"] == 30
    assert unpack_state(_export(http, second), adapter(MODEL).digest).index == 30
    for broken in (b"", b"x" * 100, data[:-1], data[:50] + b"\0" + data[51:]):
        answer = _import(http, second, broken)
        assert (answer.status_code, "is empty" in answer.json()["error"]["message"]) == (400, not broken)
    assert _import(http, _open(http, "fovea-titans-mag"), data).status_code == 409
    two = adapter(MODEL).net.session(2).export(adapter(MODEL).digest)
    assert (_import(http, second, two).status_code, _facts(http, second)["version"]) == (400, 1)


def test_fork_goes_its_own_way_and_deletion_is_complete(http):
    session = _open(http)
    _read(http, session, [1, 2, 3])
    twin = http.post(f"/v1/sessions/{session}/fork").json()
    assert (twin["tokens"], twin["version"]) == (3, 0)
    _read(http, twin["id"], [4, 5])
    assert (_facts(http, session)["tokens"], _facts(http, twin["id"])["tokens"]) == (3, 5)
    assert http.delete(f"/v1/sessions/{session}").json() == {"id": session, "object": "session", "deleted": True}
    assert {http.get(f"/v1/sessions/{session}{end}").status_code for end in ("", "/surprise", "/export")} == {404}
    assert http.post("/v1/chat/completions", json={**SAID, "session_id": session}).status_code == 404


def test_surprise_says_what_was_learnt_token_by_token(http):
    session = _open(http)
    _read(http, session, [8, 24] * 20)
    _read(http, session, [1, 2])
    trace = http.get(f"/v1/sessions/{session}/surprise").json()
    assert (trace["version"], [t["token"] for t in trace["tokens"]], trace["tokens"][0]["text"]) == (2, [1, 2], " the")
    earlier = http.get(f"/v1/sessions/{session}/surprise", params={"version": 1}).json()["tokens"]
    assert len(earlier) == 40
    assert all(t["loss"] >= 0 and 0 < t["rate"] <= 0.1 and 0.001 <= t["forgotten"] < 1 for t in earlier)
    assert http.get(f"/v1/sessions/{session}/surprise", params={"version": 7}).status_code == 404


@pytest.mark.parametrize(("path", "body", "param"), [
    ("chat/completions", {"n": 2}, "n"), ("chat/completions", {"longctx": {"blocks": 2}}, "longctx.blocks"),
    ("chat/completions", {"model": "fovea-titans-mag"}, "session_id"),
    ("chat/completions", {"model": "fovea-landmark-recall"}, "model"),
    ("chat/completions", {"session_id": "mine"}, "session_id"), ("completions", {"prompt": ["the", "of"]}, "prompt"),
    ("chat/completions", {"user": "\ud800"}, None), ("completions", {"prompt": [1], "metadata": {"a": DEEP}}, None),
])  # fmt: skip
def test_what_a_session_can_not_do_is_400(http, path, body, param):
    said = SAID if path.startswith("chat") else {"model": MODEL}
    sent = json.dumps({**said, "session_id": _open(http), **body})  # httpx2 itself writes no half of a pair
    answer = http.post(f"/v1/{path}", content=sent, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_surprise_is_of_the_first_answer_whichever_ends_first(adapter):
    source = _TitansSource(adapter(MODEL), adapter(MODEL).net.session(1), None)
    first = source.open()
    first.feed([1, 2, 3])
    second = first.fork()
    second.feed([4])
    source.on_finish(second, [])
    source.on_finish(first, [])
    assert source.finished is first
