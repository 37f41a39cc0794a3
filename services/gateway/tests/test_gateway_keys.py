"""Callers: API keys, the verb that makes them and keys on a full disk; tokens of a real identity provider."""

import asyncio
import base64
import errno
import json
import math
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jwt
import pytest
from fastapi import APIRouter, Request
from structlog.testing import capture_logs
from typer.testing import CliRunner

from fovea import plugins
from fovea.cli.exit_codes import choose_exit_code
from fovea.errors import Conflict, NotFound, NotReady, PermissionDenied, Unauthenticated
from services.gateway.app import ROUTES
from services.gateway.policy import auth, oidc, reserved_file, revocation
from services.gateway.policy.audit_log import AuditLog
from services.gateway.policy.auth import KeyRing, read_credentials
from services.gateway.policy.keys_cli import keys
from services.gateway.policy.reserved_file import replace_reserved
from services.gateway.policy.revocation import Revocations
from services.gateway.routes.dependencies import get_caller
from services.gateway.tests.issuer import Issuer
from shared.settings import Settings, settings
from tests.harness.scripted import scripted


def test_a_key_names_its_tenant_scopes_and_limits_and_only_a_hash_is_kept_that_the_owner_alone_can_read(ring, tmp_path):
    key, text = ring.add("ann", ("infer",), rate_per_minute=5, quota_per_day=100)
    kept = (tmp_path / "keys.json").read_text()
    assert (text.rpartition("_")[2] in kept, key.sha256 in kept) == (False, True)
    assert (tmp_path / "keys.json").stat().st_mode & 0o077 == 0
    assert {p.name for p in tmp_path.iterdir()} == {"keys.json", "keys.json.lock", "keys.json.spare"}
    caller = ring.authenticate(text)
    assert (caller.tenant, caller.limits.rate_per_minute, caller.limits.quota_per_day) == ("ann", 5, 100)
    caller.require_scope("infer")
    with pytest.raises(PermissionDenied, match="jobs"):
        caller.require_scope("jobs")
    ring.add("ann", ("infer",))
    (tmp_path / "keys.json").write_text((tmp_path / "keys.json").read_text().replace('"infer"', '"infra"'))
    with pytest.raises(Conflict, match=r"keys\.0\.scopes\.0: Input should be 'infer'"):
        ring.list_keys()


async def test_a_plugins_route_outside_v1_needs_a_key_too(gateway, ring, monkeypatch):
    router, load_all = APIRouter(prefix="/hooks"), plugins.load_all

    @router.get("/a")
    async def hook(request: Request) -> str:
        return get_caller(request).tenant

    monkeypatch.setattr(plugins, "load_all", lambda *of, **_: {"gateway.x": router} if ROUTES in of else load_all(*of))
    scene = await gateway(auth="keys")
    _, text = ring.add("ann", ("infer",))
    _, other = ring.add("ann", ("jobs",))
    answers = [await scene.client.get("/hooks/a", headers={"x-api-key": key}) for key in ("", other, text)]
    assert ([answer.status_code for answer in answers], answers[-1].json()) == ([401, 403, 200], "ann")


def test_a_revoked_key_is_refused_by_a_gateway_that_knew_it_and_a_broken_file_keeps_the_others_in_force(
    ring, tmp_path, clock
):
    clock.govern(auth)
    serving = KeyRing(tmp_path / "keys.json")
    key, text = ring.add("ann", ("infer",))
    ring.authenticate(text)
    assert serving.authenticate(text).tenant == "ann"
    assert ring.read_last_used() == serving.read_last_used() == {key.id: serving._used[key.id]}, "the newest use"
    ring.revoke(key.id)
    clock.advance(auth.RELOAD_INTERVAL_S)
    with pytest.raises(Unauthenticated):
        serving.authenticate(text)
    with pytest.raises(NotFound):
        ring.revoke(key.id)
    _, text = ring.add("ann", ("infer",))
    for one in (ring, serving):  # both know a key that was made a moment ago
        one.authenticate(text)
    (tmp_path / "keys.json").write_text('{"keys": [')
    clock.advance(auth.RELOAD_INTERVAL_S)
    assert ring.authenticate(text).tenant == "ann"
    with pytest.raises(Conflict):
        ring.add("bob", ("infer",))


async def test_a_key_file_that_can_not_be_reached_for_a_while_keeps_its_keys_and_the_watch_for_revoked_ones(
    ring, monkeypatch
):
    """As on a network file system, whose server is away."""
    key, secret = ring.add("ann", ("infer",))
    monkeypatch.setattr(auth, "RELOAD_INTERVAL_S", 0)
    assert ring.authenticate(secret).tenant == "ann"
    monkeypatch.setattr(revocation, "CHECK_INTERVAL_S", 0.01)
    revocations = Revocations(ring, None)
    await revocations.start()
    async with revocations.end_when_revoked(ring.authenticate(secret)):
        with monkeypatch.context() as away:
            away.setattr(Path, "stat", Mock(side_effect=OSError(errno.ESTALE, "Stale file handle")))
            assert ring.authenticate(secret).tenant == "ann"
            await asyncio.sleep(0.1)

    async def work() -> None:
        async with revocations.end_when_revoked(ring.authenticate(secret)):
            ring.revoke(key.id)
            await asyncio.sleep(5)

    with pytest.raises(Unauthenticated, match="revoked"):
        await work()
    await revocations.stop()


def test_a_key_file_of_a_secret_is_warned_of_once_that_use_is_not_written(ring, monkeypatch):
    monkeypatch.setattr(auth, "USED_INTERVAL_S", 0)
    monkeypatch.setattr(auth, "replace_file", Mock(side_effect=OSError(errno.EROFS, "Read-only file system")))
    key, secret = ring.add("ann", ("infer",))
    with capture_logs() as lines:
        for _ in range(3):
            ring.authenticate(secret)
    assert (len(lines), ring.read_last_used().keys()) == (1, {key.id})


def test_a_key_is_found_in_two_headers_and_near_misses_and_an_expired_one_are_refused(ring):
    for text, key in {b"Bearer abc": "abc", b"bearer  abc ": "abc", b"Basic abc": None, b"Bearer": None}.items():
        assert read_credentials({b"authorization": text}) == key, text
    assert read_credentials({b"x-api-key": b"abc", b"authorization": b"Bearer def"}) == "abc"
    assert read_credentials({b"x-api-key": b" ", b"authorization": b"Bearer def"}) == "def"
    assert read_credentials({}) is None
    _, text = ring.add("ann", ("infer",))
    odd = (None, "", "fovea_", "fovea_00000000_x", "\udcff", "ключ")
    for wrong in (*odd, text[:-1], text + "0", text[:14] + "_" + "0" * 40):
        with pytest.raises(Unauthenticated):
            ring.authenticate(wrong)
    _, old = ring.add("ann", ("infer",), expires=datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(Unauthenticated, match="expired"):
        ring.authenticate(old)


async def test_calls_need_a_key_with_the_scope_of_their_door_and_pages_do_not(served, ring):
    scopes = ("infer", "jobs", "admin", "metrics", "interventions")
    without = {scope: ring.add("ann", tuple(one for one in scopes if one != scope))[1] for scope in scopes}
    only = {scope: ring.add("ann", (scope,))[1] for scope in scopes}
    scene = await served(auth="keys")
    probes = ("/v1/probe", "/v1/probe/activations", "/v1/probe/models")
    scene.announce(scene.upstream.url, name="p", service="probe", routes=probes)
    for path in ("/livez", "/docs", "/docs/style.css", "/docs/search.js", "/openapi.json", "/v2/health/live"):
        assert (await scene.client.get(path)).status_code == 200, path
    assert (await scene.client.get("/")).headers["content-type"].startswith("text/html")
    for path, key in (("/v1/jobs", {}), ("/v1/echo", {}), ("/v1/echo", {"x-api-key": "no"})):
        answer = await scene.client.post(path, content=b"x", headers=key)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), path
        assert answer.headers["www-authenticate"].startswith("Bearer")
    good = await scene.client.post("/v1/echo", headers={"authorization": f"Bearer {only['infer']}"})
    seen = scene.upstream.seen[-1]["headers"]
    assert (good.status_code, seen["x-fovea-tenant"], only["infer"] in json.dumps(seen)) == (200, "ann", False)
    for method, path, scope in (
        ("POST", "/v1/echo", "infer"), ("GET", "/v1/models", "infer"), ("GET", "/v1/jobs", "jobs"),
        ("GET", "/metrics", "metrics"), ("POST", "/v2/repository/models/pranet/unload", "admin"),
        ("POST", "/v2/repository/index", "infer"), ("GET", "/v2", "infer"),
        ("GET", "/v1/steering-vectors", "interventions"), ("POST", "/v1/steering-vectors", "interventions"),
        ("POST", "/v1/probe", "interventions"), ("POST", "/v1/probe/activations", "interventions"),
        ("GET", "/v1/probe/models", "infer"), ("POST", "/v1/probes", "infer"),
    ):  # fmt: skip
        refused = await scene.client.request(method, path, headers={"x-api-key": without[scope]})
        assert (refused.status_code, scope in refused.text) == (403, True), path
        answer = await scene.client.request(method, path, headers={"x-api-key": only[scope]})
        assert answer.status_code in {200, 404, 503}, path
    answer = await scene.client.post("/v1/echo", headers={"x-api-key": only["infer"], "prefer": "respond-async"})
    assert (answer.status_code, "jobs" in answer.json()["detail"]) == (403, True)
    assert "--scope infer --scope jobs" in answer.json()["hint"]  # a key that also has what this one has


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("FOVEA_DATA_DIR", str(tmp_path))
    settings.cache_clear()
    yield lambda *words: CliRunner().invoke(keys, list(words))
    settings.cache_clear()


def test_the_verb_prints_a_secret_once_and_lists_without_it_with_whole_ids_and_utc(run, tmp_path):
    limits = ("--expires", "2090-01-31T10:00:00+02:00", "--quota", "7")
    added = run("add", "a-tenant-of-a-long-name", "--scope", "infer", "--scope", "admin", *limits)
    secret = added.stdout.strip()
    assert (added.exit_code, secret.startswith("fovea_")) == (0, True)
    ring = KeyRing(tmp_path / "keys.json")
    assert ring.authenticate(secret).scopes == {"infer", "admin"}
    (key,) = ring.list_keys()
    listed = json.loads(run("list", "--json").stdout)
    assert run("list", "--format", "{id} {scopes}").stdout == f'{key.id} ["infer", "admin"]\n'
    assert (listed["tenant"], listed["quota_per_day"], "sha256" in listed) == ("a-tenant-of-a-long-name", 7, False)
    _, row = run("list").stdout.splitlines()
    assert row.split("\t")[:3] == [key.id, "a-tenant-of-a-long-name", "infer admin"]
    assert ("2090-01-31 08:00" in row, secret.rpartition("_")[2] in row) == (True, False)
    run("add", "soon", "--expires", "2d")
    assert timedelta(1) < ring.list_keys()[1].expires - datetime.now(UTC) < timedelta(2)
    assert [run("revoke", each.id).exit_code for each in ring.list_keys()] == [0, 0]
    assert run("list", "--json").stdout == ""


def test_rotating_says_when_the_old_key_ends_and_makes_none_that_has_expired_and_mistakes_are_told(run, tmp_path):
    run("add", "ann", "--expires", "2090-01-31")
    ring = KeyRing(tmp_path / "keys.json")
    (key,) = ring.list_keys()
    assert "stays valid until 2090-01-31 00:00 UTC" in run("rotate", key.id, "--overlap", "2091-01-01").stderr
    ring.update(key.id, {"expires": datetime(2026, 1, 31, tzinfo=UTC)})
    refused = run("rotate", key.id).exception
    assert (type(refused), "expired at 2026-01-31" in refused.detail) == (Conflict, True)
    for words, told, code in (
        (("add", "an n"), "not a valid tenant", 2), (("add", "ann", "--scope", "root"), "root", 2),
        (("add", "ann", "--expires", "soon"), "soon", 2), (("revoke", "12345678"), "12345678", 4),
    ):  # fmt: skip
        refused = run(*words).exception
        assert (told in refused.detail, choose_exit_code(refused)) == (True, code)
    assert len(ring.list_keys()) == 2


@pytest.fixture
def full_disk(monkeypatch):
    """From now on nothing gets new blocks and no folder a new file; what a file has already may be written."""
    write, opened = os.write, os.open
    fail = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))

    def write_in_place(handle: int, data: bytes) -> int:
        if os.lseek(handle, 0, os.SEEK_CUR) + len(data) > os.fstat(handle).st_size:
            fail()
        return write(handle, data)

    def open_known(path: str, flags: int, mode: int = 0o777) -> int:
        return opened(path, flags, mode) if Path(path).exists() else fail()  # type: ignore[return-value]

    def begin() -> None:
        monkeypatch.setattr(os, "write", write_in_place)
        monkeypatch.setattr(os, "open", open_known)
        monkeypatch.setattr(os, "posix_fallocate", fail)

    return begin


def test_keys_are_revoked_where_nothing_can_be_allocated_and_without_a_spare_in_place(tmp_path, full_disk):
    whole, ring = KeyRing(tmp_path / "other.json"), KeyRing(tmp_path / "keys.json")
    made = [whole.add("alice", ("infer",)) for _ in range(3)]
    (key, text), (_, other) = ring.add("alice", ("infer",)), ring.add("bob", ("infer",))
    (tmp_path / "keys.json").write_text((tmp_path / "keys.json").read_text().rstrip())
    (tmp_path / "keys.json.spare").unlink()
    full_disk()
    for each, secret in made[:2]:
        whole.revoke(each.id)
        with pytest.raises(Unauthenticated):
            whole.authenticate(secret)
    assert whole.authenticate(made[2][1]).tenant == "alice"
    ring.revoke(key.id)
    assert [key.tenant for key in ring.list_keys()] == ["bob"]
    with pytest.raises(Unauthenticated):
        ring.authenticate(text)
    assert ring.authenticate(other).tenant == "bob"
    with pytest.raises(Conflict, match="No space left"):
        ring.add("carol", ("infer",), **dict.fromkeys(("rate_per_minute", "quota_per_day"), 10**4000))
    assert ring.list_keys()[0].tenant == "bob"


def test_a_reserved_file_holds_what_was_written_last_also_where_there_are_no_links(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    for number, size in enumerate((10, 5000, 3, 20_000, 1, 4096, 4097, 8192)):
        replace_reserved(path, json.dumps([number] * size).encode())
        assert json.loads(path.read_text()) == [number] * size
    assert {each.name for each in tmp_path.iterdir()} == {"file.json", "file.json.spare"}
    assert {each.stat().st_mode & 0o777 for each in tmp_path.iterdir()} == {0o600}
    monkeypatch.setattr(reserved_file.os, "link", Mock(side_effect=OSError(errno.EPERM, "Operation not permitted")))
    for number in range(3):
        replace_reserved(path, b"%d" % number)
        assert json.loads(path.read_text()) == number


def test_an_act_that_the_audit_log_has_no_room_for_is_not_undone(tmp_path, full_disk):
    audit = AuditLog(tmp_path / "audit.jsonl")
    audit.write("ops/1", "key made", "a")
    full_disk()
    with capture_logs() as lines:
        audit.write("ops/1", "key revoked", "b")
    assert [entry["target"] for entry in audit.read(10)] == ["a"]
    assert ("key revoked" in str(lines), "No space left" in str(lines)) == (True, True)


@pytest.fixture(scope="module")
def issuer():
    with Issuer() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.05,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
async def ask(served, issuer):
    scene = await served(auth="keys", oidc_issuer=issuer.url)

    async def send(bearer: str, path: str = "/v1/echo", method: str = "POST") -> Any:
        answer = await scene.client.request(method, path, headers={"authorization": f"Bearer {bearer}"})
        return answer.status_code, scene.upstream.seen[-1] if scene.upstream.seen else None

    return send


async def test_a_token_names_tenant_and_scopes_and_forged_and_odd_ones_are_refused(ask, issuer):
    status, seen = await ask(issuer.token())
    assert (status, seen["headers"]["x-fovea-tenant"]) == (200, "alice")
    assert (await ask(issuer.token(scope="metrics")))[0] == 403
    assert (await ask(issuer.token(), "/v1/admin/keys", "GET"))[0] == 403
    assert (await ask(issuer.token(scope="admin"), "/v1/admin/keys", "GET"))[0] == 200
    good = issuer.token()
    head, body, signature = good.split(".")

    def encode(text: str) -> str:
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    other = encode(json.dumps({**json.loads(base64.urlsafe_b64decode(body + "==")), "tenant": "bob"}))
    none = encode('{"alg": "none"}')
    for forged in (f"{head}.{other}.{signature}", f"{none}.{body}.", f"{head}.{body}.", "a.b.c", "..", f"{good}x"):
        assert (await ask(forged))[0] == 401
    others = (
        {"exp": 1_700_000_000}, {"nbf": 9_999_999_999}, {"iss": "http://evil.example"}, {"aud": "another"},
        {"tenant": ""}, {"tenant": "../alice"}, {"kid": "unknown"}, {"tenant": "local"}, {"exp": math.inf},
        {"aud": 7}, *({"scope": odd} for odd in (None, 7, {"infer": 1}, [["infer"]], True)),
    )  # fmt: skip
    headers = ("[" * 8_000, "7", "null", '{"alg":"ES256","kid":[1]}', '{"alg":7}', "\x00")
    odd = [".".join([encode(header)] * 3) for header in headers]
    for text in (*(issuer.token(**claims) for claims in others), *odd):
        assert (await ask(text))[0] == 401, text[:200]


async def test_a_known_key_does_not_wait_for_a_slow_issuer(ask, issuer, monkeypatch):
    good = issuer.token()
    assert (await ask(good))[0] == 200
    monkeypatch.setattr(oidc, "_REFETCH_S", 0.0)
    stranger = issuer.token(kid="unknown")
    issuer.pause_s = 1.0
    try:
        asking = asyncio.create_task(ask(stranger))
        await asyncio.sleep(0.2)
        assert (await ask(good))[0] == 200
        assert not asking.done(), "it was answered while the issuer was still being asked"
        assert (await asking)[0] == 401
    finally:
        issuer.pause_s = 0.0


async def test_the_issuer_may_rotate_its_key(ask, issuer, monkeypatch):
    old = issuer.token()
    assert (await ask(old))[0] == 200
    issuer.rotate()
    new = issuer.token()
    monkeypatch.setattr(oidc, "_REFETCH_S", 0.0)
    assert ((await ask(new))[0], (await ask(old))[0]) == (200, 401)
    monkeypatch.setattr(oidc, "_REFETCH_S", 5.0)
    before = issuer.fetches
    for number in range(20):
        assert (await ask(issuer.token(kid=f"made-up-{number}")))[0] == 401
    assert issuer.fetches <= before + 1


async def test_an_issuer_that_is_away_refuses_no_keys_and_one_outside_is_reached_by_proxy(served, issuer, monkeypatch):
    scene = await served(auth="keys", oidc_issuer="http://127.0.0.1:9")
    text = scene.app.state.gateway.keys.add("bob", ("infer",))[1]
    for _ in range(2):  # the second time nothing is fetched, as that has just failed
        answer = await scene.client.post("/v1/echo", headers={"authorization": f"Bearer {issuer.token()}"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert (await scene.client.post("/v1/echo", headers={"authorization": f"Bearer {text}"})).status_code == 200
    asked = []

    async def serve(reader, _writer):
        asked.append(await reader.readline())

    verifier = oidc.TokenVerifier(Settings(auth="keys", oidc_issuer="https://issuer.example"))
    async with scripted(serve) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        with pytest.raises(NotReady):
            await verifier.authenticate(jwt.encode({}, "x" * 32, headers={"kid": "1"}))
    assert asked[0].startswith(b"CONNECT issuer.example:443")


def test_a_user_without_a_name_as_in_a_container_gets_its_key(run, tmp_path, monkeypatch):
    for number, lack in enumerate((KeyError("getpwuid(): uid not found: 65532"), OSError("No username set")), 1):
        monkeypatch.setattr("getpass.getuser", Mock(side_effect=lack))
        made = run("add", "acme")
        assert (made.exit_code, made.output.startswith("fovea_")) == (0, True)
        assert (tmp_path / "audit.jsonl").read_text().count(f'"command/{os.getuid()}"') == number
