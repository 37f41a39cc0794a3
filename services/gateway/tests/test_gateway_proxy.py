"""The proxy over real sockets: what crosses it, what does not, and what happens when somebody goes away."""

from __future__ import annotations

from typing import Any


async def test_a_request_reaches_the_replica_and_its_answer_comes_back(gateway: Any, toy: Any) -> None:
    upstream = await toy()
    scene = await gateway()
    scene.announce(upstream.url)
    answer = await scene.client.post("/v1/echo?x=%2F1&y", content=b"\x00picture", headers={"content-type": "image/png"})
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"\x00picture", "image/png")
    seen = upstream.seen[0]
    assert (seen["method"], seen["path"], seen["query"], seen["body"]) == (
        "POST",
        "/v1/echo",
        "x=%2F1&y",
        b"\x00picture",
    )


async def test_hop_by_hop_and_credential_headers_stay_behind(gateway: Any, toy: Any) -> None:
    upstream = await toy()
    scene = await gateway()
    scene.announce(upstream.url)
    sent = {
        "Connection": "x-only-here", "X-Only-Here": "1", "Authorization": "Bearer secret", "X-Api-Key": "secret",
        "X-Fovea-Tenant": "somebody else", "TE": "trailers", "Accept": "image/png",
        "Traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        "X-Request-Id": "mine-1",
    }  # fmt: skip
    answer = await scene.client.post("/v1/echo", content=b"x", headers=sent)
    got = upstream.seen[0]["headers"]
    assert not {"x-only-here", "authorization", "x-api-key", "te"} & got.keys()
    assert got["x-fovea-tenant"] == "local"
    assert got["accept"] == "image/png"
    assert got["x-request-id"] == answer.headers["x-request-id"] == "mine-1"
    assert got["traceparent"].split("-")[1] == "a" * 32
    assert got["traceparent"].split("-")[2] != "b" * 16
    assert 119_000 < int(got["x-fovea-deadline-ms"]) <= 120_000
    assert answer.headers["x-toy"] == "yes"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert len(answer.headers.get_list("x-content-type-options")) == 1
