"""Versions of a service answer their shares; a shadow answers nobody, delays nobody, and is compared."""

import asyncio
import base64
import gzip
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY
from redis import Redis
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as ToyRoute

from fovea.api.replica import SCOPES_HEADER, replicas_key
from fovea.errors import InvalidOption
from fovea_rollouts import shadow
from fovea_rollouts.answer_agreement import TooLargeToCompare, WholeAnswer, measure_agreement
from fovea_rollouts.shadow import SHADOW_TENANT
from fovea_rollouts.traffic_plans import TrafficPlan, TrafficPlans
from services.gateway.policy.auth import KeyRing
from services.gateway.tests.test_gateway_affinity import LONG, chat, key
from shared.vision.draw import encode
from tests.harness.waiting import until


def png(pixels: Any) -> str:
    return base64.b64encode(encode(np.asarray(pixels, np.uint8))).decode()


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def of_json(**fields: Any) -> WholeAnswer:
    return WholeAnswer("application/json; charset=utf-8", json.dumps(fields).encode())


def completion(text: str, **more: Any) -> WholeAnswer:
    return of_json(choices=[{"message": {"content": text}}], **more)


def box(x: float, class_id: int = 0) -> dict[str, Any]:
    return {"box": [x, 0, x + 10, 10], "class_id": class_id, "score": 0.5}


@pytest.mark.parametrize("text", ["{bad", '{"detection": {"percent": {"canary": 120}}}', '{"detection": {"share": 5}}'])
def test_a_setting_that_is_no_plan_ends_the_gateway_with_its_name(monkeypatch, capsys, text):
    monkeypatch.setenv("FOVEA_TRAFFIC", text)
    with pytest.raises(SystemExit) as ended:
        TrafficPlans(None)
    assert ended.value.code == 2
    assert "FOVEA_TRAFFIC" in capsys.readouterr().err


HALF = np.zeros((8, 8), np.uint8)
HALF[:4] = 255


def stream(*events: dict[str, Any]) -> WholeAnswer:
    return WholeAnswer("text/event-stream", "".join(f"data: {json.dumps(each)}\n\n" for each in events).encode())


def chunk(text: str, index: int = 0, field: str = "content") -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": {field: text}}]}


def call(index: int, **function: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": index, "function": function}]}}]}


def block(text: str, kind: str = "text") -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": f"{kind}_delta", kind: text}}


def message(text: str) -> WholeAnswer:
    return of_json(type="message", content=[{"type": "text", "text": text}])


def item(name: str, arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
    added = {"type": "response.output_item.added", "output_index": 0, "item": {"name": name, "arguments": ""}}
    return added, {"type": "response.function_call_arguments.delta", "output_index": 0, "delta": arguments}


@pytest.mark.parametrize(("left", "right", "wanted"), [
    (completion("a b c d", id="1"), completion("a b c d", id="2"), {"text": 1.0}),
    (completion("a b c d"), completion("a b x y"), {"text": 0.5}),
    (of_json(detections=[box(0), box(50)]), of_json(detections=[box(50), box(1)]), {"boxes": 1.0}),
    (of_json(detections=[box(0), box(50)]), of_json(detections=[box(0), box(50, 1)]), {"boxes": 0.5}),
    (of_json(detections=[]), of_json(detections=[]), {"boxes": 1.0}),
    (of_json(detections=[box(0)]), of_json(detections=[]), {"boxes": 0.0}),
    (of_json(detections=[], columns={"xyxy": [], "class_id": []}),
     of_json(detections=[], columns={"xyxy": [[0, 0, 9, 9]], "class_id": [0]}), {"boxes": 0.0}),
    (of_json(mask=png(HALF)), of_json(mask=png(HALF)), {"mask": 1.0}),
    (of_json(mask=png(HALF)), of_json(mask=png(HALF[::-1])), {"mask": 0.0}),
    (of_json(mask=png(HALF)), of_json(mask=png(np.full((8, 8), 255))), {"mask": 2 / 3}),
    (of_json(results=[{"mask": png(HALF)}, {"mask": png(HALF)}, {"status": 415}]),
     of_json(results=[{"mask": png(HALF)}, {"mask": png(HALF[::-1])}, {"status": 415}]), {"mask": 0.5, "json": 1.0}),
    (of_json(restored=png(HALF)), of_json(restored=png(HALF[:4])), {"picture": 0.0}),
    (of_json(a=1, b=[1, 2], times={"x": 1}), of_json(a=1.001, b=[1, 3], times={"x": 2}), {"json": 2 / 3}),
    (stream(*map(chunk, ("a", " b", " c", " d"))), stream(), {"text": 0.0}),
    (stream(*map(chunk, ("a", " b c", " d"))), stream(*map(chunk, ("a b", " x d"))), {"text": 0.75}),
    (stream(chunk("a b "), chunk("x y ", 1), chunk("c"), chunk("z", 1)),
     stream(chunk("x y z", 1), chunk("a "), chunk("b c")), {"text": 1.0}),
    (stream(chunk("a b", 0, "reasoning_content")), stream(chunk("a c", 0, "reasoning_content")), {"text": 0.5}),
    (stream(call(0, name="f", arguments=""), call(0, arguments="1")), stream(call(0, name="f")), {"text": 2 / 3}),
    (stream(block("a b"), block(" c d")), stream(block("a"), block(" x c d")), {"text": 0.75}),
    (stream(block("a b", "thinking")), stream(block("a b c d", "thinking")), {"text": 2 / 3}),
    (message("a b c d"), message("a b x d"), {"text": 0.75}),
    (stream(*item("f", "1")), stream(*item("g", "1")), {"text": 0.5}),
    (stream({"frame": 1}), stream({"frame": 2}), {}),
    (WholeAnswer("text/csv", b"a"), WholeAnswer("text/csv", b"a"), {}),
    (completion("a"), WholeAnswer("text/plain", b"a"), {}),
])  # fmt: skip
def test_agreement_is_of_what_the_answers_hold(left, right, wanted):
    assert measure_agreement(left, right) == pytest.approx(wanted)


@pytest.mark.parametrize("kind", ["restored", "mask", "detections"])
def test_a_picture_of_too_many_pixels_and_too_many_boxes_are_not_compared(kind):
    large = [box(x) for x in range(3000)] if kind == "detections" else png(np.zeros((6000, 6000), np.uint8))
    answer = of_json(**{kind: large})
    with pytest.raises(TooLargeToCompare, match=r"36,000,000 pixels|3,000 boxes"):
        measure_agreement(answer, answer)


@pytest.mark.parametrize("plan", [
    {"percent": {"a": 60, "b": 41}}, {"percent": {"a": -1}}, {"percent": {"a": float("nan")}},
    {"percent": {"": 30}}, {"percent": {"a": 5}, "shadow": "a"}, {"shadow": "A B"},
])  # fmt: skip
def test_a_plan_that_makes_no_sense_is_refused(plan):
    with pytest.raises(ValueError, match=r"percent|pattern|finite"):
        TrafficPlan.model_validate(plan)


@pytest.mark.parametrize("shares", [(93.2, 1.9, 4.9), (0.1, 64.1, 35.8)])
def test_percents_that_are_a_hundred_together_leave_nothing_whatever_their_floats_add_up_to(shares):
    assert TrafficPlan(percent=dict(zip("abc", shares, strict=True))).percent_of("") == 0


async def versions(planned: Any, toy: Any, plan: dict[str, Any], *names: str, **changed: Any) -> Any:
    scene = await planned(traffic=json.dumps({"svc": plan}) if plan else "", **changed)
    for name in ("", *names):
        upstream = await toy(name=name or "stable")
        scene.announce(upstream.url, name=name or "stable", version=name)
        scene.toys = {**getattr(scene, "toys", {}), name: upstream}
    return scene


async def answered_by(scene: Any, times: int) -> Counter[str]:
    return Counter([(await scene.client.post("/v1/echo", content=b"x")).headers["x-replica"] for _ in range(times)])


async def test_a_canary_answers_about_its_share_which_others_take_when_it_is_gone(planned, toy):
    scene = await versions(planned, toy, {"percent": {"canary": 30}}, "canary", "idle")
    before = sample("fovea_version_requests_total", service="svc", version="canary", status="200")
    found = await answered_by(scene, 120)
    assert set(found) == {"stable", "canary"}
    assert 12 < found["canary"] < 65
    after = sample("fovea_version_requests_total", service="svc", version="canary", status="200")
    assert after - before == found["canary"]
    scene.registry._services["svc"].replicas.pop("canary")
    assert set(await answered_by(scene, 20)) == {"stable"}


async def test_a_conversation_keeps_its_version(planned, toy):
    scene = await versions(planned, toy, {"percent": {"canary": 50}}, "canary")
    picked = [[scene.registry.pick("svc", (), key(f"{n}" + LONG)).id for _ in range(4)] for n in range(20)]
    assert all(len(set(each)) == 1 for each in picked)
    assert len({each[0] for each in picked}) == 2


async def settled(outcome: str, version: str, count: int) -> None:
    labels = {"service": "svc", "version": version, "outcome": outcome}
    await until(lambda: sample("fovea_shadow_requests_total", **labels) == count, 5, f"{count} {outcome}")


async def test_a_shadow_sees_copies_answers_nobody_and_is_compared_and_its_tenant_is_nobodys(planned, toy, tmp_path):
    scene = await versions(planned, toy, {"shadow": "next1", "shadow_percent": 100}, "next1")
    for number in range(5):
        headers = {"idempotency-key": "1"}
        answer = await scene.client.post("/v1/echo", json={"detections": [box(number)]}, headers=headers)
        assert answer.headers["x-replica"] == "stable"
        await settled("compared", "next1", number + 1)
    labels = {"service": "svc", "version": "next1", "kind": "boxes"}
    assert sample("fovea_shadow_agreement_count", **labels) == 5
    assert sample("fovea_shadow_agreement_sum", **labels) == 5
    seen = scene.toys["next1"].seen
    assert {json.loads(each["body"])["detections"][0]["box"][0] for each in seen} == set(range(5))
    assert len({each["headers"]["idempotency-key"] for each in seen} - {"1"}) == 5
    assert {each["headers"]["x-fovea-tenant"] for each in seen} == {SHADOW_TENANT}
    assert {each["headers"][SCOPES_HEADER] for each in seen} == {"infer"}
    assert "interventions" in scene.toys[""].seen[0]["headers"][SCOPES_HEADER]
    assert len(scene.toys[""].seen) == 5
    with pytest.raises(InvalidOption):
        KeyRing(tmp_path / "keys.json").add(SHADOW_TENANT, ("infer",))
    answer = await scene.client.put("/v1/admin/traffic/svc", json={})
    assert (answer.status_code, "FOVEA_TRAFFIC" in answer.text) == (503, True), "without Redis no plan can be set"


async def test_what_is_stored_steers_or_leaves_something_behind_is_not_copied(planned, toy):
    scene = await versions(planned, toy, {"shadow": "next5", "shadow_percent": 100}, "next5")
    for replica in scene.registry._services["svc"].replicas.values():
        replica.record = replica.record.model_copy(update={"affine": ("/v1/echo",)})
    scene.registry._update_routes()
    await scene.client.post("/v1/sessions", json={})
    packed = {"content-type": "application/json", "content-encoding": "gzip"}
    await scene.client.post("/v1/echo", content=gzip.compress(b'{"store": true}'), headers=packed)
    for body in (
        b'{"store": true}', b'{"interventions": [{}]}', b'{"captur\\u0065": [{}]}', chat("hi", session_id="s"),
        b'{"store": false, "a": 1}',
    ):  # fmt: skip
        answer = await scene.client.post("/v1/echo", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 200
    await settled("compared", "next5", 1)
    copies = [(each["path"], json.loads(each["body"])) for each in scene.toys["next5"].seen]
    assert copies == [("/v1/echo", {"store": False, "a": 1})]


async def test_nobody_waits_for_a_shadow_that_hangs_and_few_copies_are_under_way(planned, toy):
    scene = await planned(traffic=json.dumps({"svc": {"shadow": "slow", "shadow_percent": 100}}))

    async def hang(_request: Request) -> Response:
        await asyncio.Event().wait()
        return JSONResponse({})

    scene.announce((await toy(name="stable")).url, name="stable")
    slow = await toy(name="slow", extra=[ToyRoute("/v1/echo", hang, methods=["POST"])])
    scene.announce(slow.url, name="slow", version="slow")
    assert {(await scene.client.post("/v1/echo", json={})).status_code for _ in range(7)} == {200}
    assert sample("fovea_shadow_requests_total", service="svc", version="slow", outcome="dropped") == 3


async def test_a_shadow_that_fails_or_answers_too_much_is_counted_and_nobody_hears_of_it(planned, toy):
    scene = await versions(planned, toy, {"shadow": "next3", "shadow_percent": 100}, "next3")
    scene.toys["next3"].status = 500
    assert (await scene.client.post("/v1/echo", json={})).status_code == 200
    await settled("failed", "next3", 1)
    scene.toys["next3"].seen.clear()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shadow, "MAX_ANSWER_BYTES", 100)
        assert (await scene.client.post("/v1/echo", content=b"x" * 200)).status_code == 200
    await settled("skipped", "next3", 1)
    assert scene.toys["next3"].seen == []


async def test_an_admin_sets_the_plan_for_all_gateways(planned, toy, redis_url):
    scene = await versions(planned, toy, {}, "next", redis_url=redis_url)
    with Redis.from_url(redis_url) as redis:  # polls forget replicas that Redis does not hold
        records = {one.id: one.record.model_dump_json() for one in scene.registry.list_alive("svc")}
        redis.hset(replicas_key("svc"), mapping=records)
    other = await planned(redis_url=redis_url)
    for _ in range(2):
        put = await scene.client.put("/v1/admin/traffic/svc", json={"percent": {"next": 100}})
        assert put.status_code == 200, put.text
    assert (put.json()["plan"]["percent"], put.json()["versions"]) == ({"next": 100}, {"": 1, "next": 1})
    await other.registry.poll_redis()
    assert other.registry.versions.find("svc").percent == {"next": 100}
    assert scene.registry.pick("svc").id == "next"
    assert (await scene.client.put("/v1/admin/traffic/none", json={})).status_code == 404
    assert (await scene.client.put("/v1/admin/traffic/svc", json={"percent": {"a": 101}})).status_code == 422
    assert (await scene.client.delete("/v1/admin/traffic/svc")).json()["plan"] is None
    assert (await scene.client.get("/v1/admin/traffic")).json()["services"][0]["service"] == "svc"
