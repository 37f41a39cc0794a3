"""Bearer tokens of a real identity provider in a process of its own."""

import asyncio
import base64
import json
import subprocess
import sys
from typing import Any

import httpx2
import pytest

from services.gateway.policy import oidc


@pytest.fixture(scope="module")
def issuer():
    command = [sys.executable, "-m", "services.gateway.tests.issuer"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


def token(issuer: str, **claims: str) -> str:
    params = {"tenant": "alice", "scope": "infer fovea:jobs", **claims}
    text: str = httpx2.get(f"{issuer}/token", params=params).json()["token"]
    return text


@pytest.fixture
async def ask(served, issuer):
    scene = await served(auth="keys", oidc_issuer=issuer)

    async def send(bearer: str, path: str = "/v1/echo", method: str = "POST") -> Any:
        answer = await scene.client.request(method, path, headers={"authorization": f"Bearer {bearer}"})
        return answer.status_code, scene.upstream.seen[-1] if scene.upstream.seen else None

    return send


async def test_a_token_names_tenant_and_scopes_and_a_forged_one_is_refused(ask, issuer):
    status, seen = await ask(token(issuer))
    assert status == 200
    assert seen["headers"]["x-fovea-tenant"] == "alice"
    assert (await ask(token(issuer, scope="metrics")))[0] == 403
    assert (await ask(token(issuer), "/v1/admin/keys", "GET"))[0] == 403
    assert (await ask(token(issuer, scope="admin"), "/v1/admin/keys", "GET"))[0] == 200
    good = token(issuer)
    head, body, signature = good.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    other = base64.urlsafe_b64encode(json.dumps({**claims, "tenant": "bob"}).encode()).decode().rstrip("=")
    none = base64.urlsafe_b64encode(json.dumps({"alg": "none"}).encode()).decode().rstrip("=")
    for forged in (f"{head}.{other}.{signature}", f"{none}.{body}.", f"{head}.{body}.", "a.b.c", "..", f"{good}x"):
        assert (await ask(forged))[0] == 401


async def test_other_tokens_are_refused(ask, issuer):
    for claims in (
        {"exp": "1700000000"}, {"nbf": "9999999999"}, {"iss": "http://evil.example"}, {"aud": "another"},
        {"tenant": ""}, {"tenant": "../alice"}, {"kid": "unknown"}, {"tenant": "local"}, {"raw": '{"exp": 1e999}'},
        {"raw": '{"aud": 7}'},
        *({"raw": json.dumps({"scope": odd})} for odd in (None, 7, {"infer": 1}, [["infer"]], True)),
    ):  # fmt: skip
        assert (await ask(token(issuer, **claims)))[0] == 401, claims


async def test_odd_headers_of_tokens_are_refused(ask):
    for header in ("[" * 8_000, "7", "null", '{"alg":"ES256","kid":[1]}', '{"alg":7}', "\x00"):
        odd = base64.urlsafe_b64encode(header.encode()).decode().rstrip("=")
        assert (await ask(f"{odd}.{odd}.{odd}"))[0] == 401, header[:40]


async def test_a_known_key_does_not_wait_for_a_slow_issuer(ask, issuer, monkeypatch):
    good = token(issuer)
    assert (await ask(good))[0] == 200
    monkeypatch.setattr(oidc, "_REFETCH_S", 0.0)
    stranger = token(issuer, kid="unknown")
    httpx2.get(f"{issuer}/pause?2")
    try:
        asking = asyncio.create_task(ask(stranger))
        await asyncio.sleep(0.2)
        assert (await ask(good))[0] == 200
        assert not asking.done(), "it was answered while the issuer was still being asked"
        assert (await asking)[0] == 401
    finally:
        httpx2.get(f"{issuer}/pause?0")


async def test_the_issuer_may_rotate_its_key(ask, issuer, monkeypatch):
    old = token(issuer)
    assert (await ask(old))[0] == 200
    httpx2.get(f"{issuer}/rotate")
    new = token(issuer)
    monkeypatch.setattr(oidc, "_REFETCH_S", 0.0)
    assert (await ask(new))[0] == 200
    assert (await ask(old))[0] == 401
    monkeypatch.setattr(oidc, "_REFETCH_S", 5.0)
    before = httpx2.get(f"{issuer}/fetches").json()["fetches"]
    for number in range(20):
        assert (await ask(token(issuer, kid=f"made-up-{number}")))[0] == 401
    assert httpx2.get(f"{issuer}/fetches").json()["fetches"] <= before + 1


async def test_an_issuer_that_is_away_is_no_reason_to_refuse_keys(served, issuer):
    scene = await served(auth="keys", oidc_issuer="http://127.0.0.1:9")
    text = scene.app.state.gateway.keys.add("bob", ("infer",))[1]
    for _ in range(2):  # the second time nothing is fetched, as that has just failed
        answer = await scene.client.post("/v1/echo", headers={"authorization": f"Bearer {token(issuer)}"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert (await scene.client.post("/v1/echo", headers={"authorization": f"Bearer {text}"})).status_code == 200
