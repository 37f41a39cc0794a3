"""A request that continues a session, a document or a prompt goes to its replica, unless that one is overloaded."""

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as ToyRoute

from fovea.api.replica import HOLDS_HEADER
from services.gateway.routing import load_balancer
from services.gateway.routing.affinity import BLOCK_BYTES, MAX_TOKENS, AffinityKey, _find_key_in_body, held_key
from services.gateway.routing.load_balancer import FREE_SLOTS, LOAD_FACTOR, LoadBalancer


@dataclass
class Stand:
    id: str
    in_flight: int = 0
    slots: int = 16


def chat(*texts: str, **more: Any) -> bytes:
    return json.dumps({"model": "smol", "messages": [{"role": "user", "content": t} for t in texts], **more}).encode()


def key(*texts: str, tenant: str = "a", **more: Any) -> AffinityKey:
    return _find_key_in_body(tenant, chat(*texts, **more))


LONG = "".join(chr(97 + place * place % 26) for place in range(4000))


def test_keys_begin_alike_for_alike_prompts_of_one_tenant_and_model():
    one, two = key(LONG + "?"), key(LONG + " more", "and more", stream=True, max_tokens=3)
    assert (one.home, one.chain[:6], len(one.chain)) == (two.home, two.chain[:6], 4000 // BLOCK_BYTES)
    assert key(LONG).home != key(LONG, tenant="b").home
    assert key(LONG).home != key(LONG, model="other").home
    assert held_key("a", "doc").home != held_key("b", "doc").home


@pytest.mark.parametrize("name", ["session_id", "document_id", "previous_response_id"])
def test_a_session_or_a_document_stands_for_its_request_wherever_it_is_named(name):
    assert key(LONG, **{name: "s-1"}) == held_key("a", "s-1")
    assert key(LONG, **{name: None}) == key(LONG)
    assert _find_key_in_body("a", b'{"%b": "s-1", "messages": [' % name.encode()) == held_key("a", "s-1")


def test_what_names_nothing_and_a_body_of_very_many_parts_have_no_key():
    odd = (b"", b"{", b"[]", b'{"messages": []}', chat("short"), b'{"a":' * 5, b'"messages": "x"', b'{"prompt": 3}')
    for body in (*odd, b"\xff" * 999, b'{"prompt": "%b", "x": [' % (b"a" * 4096) + b"[]," * MAX_TOKENS):
        assert _find_key_in_body("a", body) is None


@given(st.binary(max_size=300))
def test_no_body_breaks_the_search_for_a_key(body):
    _find_key_in_body("a", b'{"messages":' + body)


def test_homes_are_agreed_on_and_spread_and_a_replica_that_leaves_moves_only_its_own():
    replicas = [Stand(f"r{i}") for i in range(4)]
    keys = [key(f"{number}" + LONG) for number in range(400)]
    before, other = ([LoadBalancer().pick("svc", seen, one).id for one in keys] for seen in (replicas, replicas[::-1]))
    assert before == other, "gateways agree without talking"
    after = [LoadBalancer().pick("svc", replicas[:3], each).id for each in keys]
    assert min(Counter(before).values()) > 60
    assert all(old == new for old, new in zip(before, after, strict=True) if old != "r3")


def test_a_conversation_stays_where_it_began_though_its_home_would_move():
    balancer, replicas = LoadBalancer(), [Stand(f"r{i}") for i in range(8)]
    for number in range(30):
        texts = [f"{number}" + LONG[:600]]
        begun = balancer.pick("svc", replicas, key(*texts))
        for turn in range(6):
            texts += [f"{turn}" + LONG[:400]]
            assert balancer.pick("svc", replicas, key(*texts)) is begun


def test_a_shared_system_prompt_does_not_draw_all_documents_to_one_replica():
    balancer, replicas = LoadBalancer(), [Stand(f"r{i}") for i in range(4)]
    picked = Counter(balancer.pick("svc", replicas, key(LONG[:700], f"{n}" + LONG)).id for n in range(80))
    assert len(picked) == 4


@given(st.lists(st.integers(0, 30), min_size=2, max_size=8), st.integers(0, 40))
def test_nobody_is_given_more_than_the_bound(loads, number):
    replicas = [Stand(f"r{i}", load) for i, load in enumerate(loads)]
    picked = LoadBalancer().pick("svc", replicas, key(f"{number}" + LONG))
    bound = max(FREE_SLOTS, math.ceil(LOAD_FACTOR * (sum(loads) + 1) / len(loads)))
    assert picked.in_flight < bound


def test_what_is_beyond_the_bound_goes_to_the_next_in_order_and_comes_back():
    balancer, replicas = LoadBalancer(), [Stand(f"r{i}") for i in range(4)]
    wanted = key(LONG)
    home = balancer.pick("svc", replicas, wanted)
    home.in_flight = 12
    second = balancer.pick("svc", replicas, wanted)
    assert second is not home
    assert balancer.pick("svc", replicas, wanted) is second
    home.in_flight = 0
    assert balancer.pick("svc", replicas, wanted) is home


def test_a_holder_that_is_gone_is_no_holder():
    balancer, replicas = LoadBalancer(), [Stand("a"), Stand("b"), Stand("c")]
    balancer.remember_affinity(held_key("t", "doc"), "b")
    assert balancer.pick("svc", replicas, held_key("t", "doc")).id == "b"
    left = [replicas[0], replicas[2]]
    successor = balancer.pick("svc", left, held_key("t", "doc"))
    assert successor.id != "b"
    assert balancer.pick("svc", replicas, held_key("t", "doc")) is successor


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(load_balancer, "MAX_PLACES", 100)
    balancer, replicas = LoadBalancer(), [Stand("a"), Stand("b")]
    for number in range(100):
        balancer.pick("svc", replicas, key(f"{number}" + LONG))
    assert len(balancer._places) == 100
    assert LoadBalancer().pick("svc", [Stand("a", 2), Stand("b", 1), Stand("c", 3)]).id == "b", "without a key"


LLM = ("/v1/chat/completions", "/v1/documents", "/v1/documents/{document_id}")


async def four(gateway: Any, toy: Any, **changed: Any) -> Any:
    scene = await gateway(**changed)
    for name in ("a", "b", "c", "d"):

        async def add(_request: Request, name: str = name) -> Response:
            return JSONResponse({"id": f"doc-of-{name}"}, headers={HOLDS_HEADER: f"doc-of-{name}", "x-replica": name})

        upstream = await toy(name=name, extra=[ToyRoute("/v1/documents", add, methods=["POST"])])
        scene.announce(upstream.url, service="llm", name=name, routes=LLM, affine=LLM)
    return scene


async def replica_of(client: httpx2.AsyncClient, body: bytes, path: str = "/v1/chat/completions") -> str:
    answer = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    return answer.headers["x-replica"]


async def test_requests_reach_the_replica_of_their_beginning_or_document_and_the_next_once_it_is_lost(gateway, toy):
    scene = await four(gateway, toy)
    for number in range(8):
        text = f"{number}" + LONG
        picked = {await replica_of(scene.client, chat(text, question)) for question in ("who?", "where?", "why?")}
        assert len(picked) == 1
    for number in range(12):
        added = await scene.client.post("/v1/documents", json={"text": f"{number}"})
        assert HOLDS_HEADER not in added.headers
        name = added.json()["id"]
        assert f"doc-of-{await replica_of(scene.client, chat('what?', document_id=name))}" == name
        gone = await scene.client.delete(f"/v1/documents/{name}")
        assert f"doc-of-{gone.headers['x-replica']}" == name
    home = await replica_of(scene.client, chat(LONG))
    scene.registry._services["llm"].replicas[home].suspect_until = math.inf
    picked = {await replica_of(scene.client, chat(LONG)) for _ in range(5)}
    assert len(picked) == 1
    assert home not in picked


async def test_least_loaded_is_still_there(gateway, toy):
    scene = await four(gateway, toy, load_balancing="least-loaded")
    assert len({await replica_of(scene.client, chat(LONG)) for _ in range(30)}) > 1
