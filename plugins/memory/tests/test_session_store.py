"""A session has one writer at a time, forgets nothing by accident and everything on demand, and is nobody else's."""

import asyncio
import stat

import pytest
import redis as sync_redis

from fovea.api.sessions import DocumentText
from fovea.errors import Conflict, InvalidOption, NotFound, NotReady, RateLimited, TooLarge
from fovea_memory.state import session_store
from fovea_memory.state.document_service import DocumentService
from fovea_memory.state.document_store import DocumentStore
from fovea_memory.state.encryption import TenantCipher, load_master_key
from fovea_memory.state.session_store import KEPT_ANSWERS, KEPT_VERSIONS, SessionStore
from shared.jobs.redis_client import RedisClient

MASTER = b"0123456789abcdef"


@pytest.fixture
async def client(redis_url):
    made = RedisClient(redis_url)
    yield made
    await made.close()


@pytest.fixture
def store(client):
    return SessionStore(client, TenantCipher(MASTER), ttl_s=60)


@pytest.fixture
def raw(redis_server):
    with sync_redis.Redis.from_url(redis_server.url) as opened:
        yield opened


def everything(raw):
    return {key: raw.type(key) for key in raw.scan_iter("*")}


async def test_versions_follow_each_other_and_the_last_three_are_kept(store):
    head = await store.create("ann", "m", "digest", b"state 0", tokens=2)
    assert (head.version, head.tokens, head.model, head.weights) == (0, 2, "m", "digest")
    for n in range(1, 6):
        head = await store.get("ann", head.id)
        assert await store.write_version("ann", head, b"state %d" % n, tokens=n) == n
    assert [await store.read_version("ann", head.id, n) for n in (3, 4, 5)] == [b"state 3", b"state 4", b"state 5"]
    assert KEPT_VERSIONS == 3
    with pytest.raises(NotFound, match="no version 2"):
        await store.read_version("ann", head.id, 2)
    assert (await store.get("ann", head.id)).tokens == 5


async def test_sessions_are_listed_newest_first_in_pages_and_only_their_tenants(store):
    heads = [await store.create("cleo", "m", "d", b"0", tokens=n, state_bytes=10 + n) for n in range(5)]
    await store.create("dora", "m", "d", b"0")
    await store.write_version("cleo", heads[1], b"1", 9, state_bytes=7)
    listed = await store.list_newest("cleo", 100)
    assert [head.id for head in listed] == [head.id for head in reversed(heads)]
    assert (listed[3].version, listed[3].tokens, listed[3].state_bytes) == (1, 9, 7)
    first = await store.list_newest("cleo", 2)
    second = await store.list_newest("cleo", 2, after=first[-1].id)
    assert [head.id for head in first + second] == [head.id for head in listed[:4]]
    assert await store.list_newest("cleo", 3, after=listed[-1].id) == []
    with pytest.raises(NotFound, match="no session"):
        await store.list_newest("dora", 3, after=heads[0].id)
    with pytest.raises(InvalidOption):
        await store.list_newest("dora", 3, after="nonsense")


async def test_what_was_deleted_or_forgotten_is_listed_no_more_and_pages_stay_full(store, raw):
    heads = [await store.create("emma", "m", "d", b"0") for _ in range(6)]
    await store.delete("emma", heads[5].id)
    for head in heads[2:4]:  # as if their time was over
        raw.delete(*raw.keys(f"*{head.id}*"))
    assert [head.id for head in await store.list_newest("emma", 2)] == [heads[4].id, heads[1].id]
    assert [head.id for head in await store.list_newest("emma", 9)] == [heads[n].id for n in (4, 1, 0)]
    for n in (4, 1, 0):
        await store.delete("emma", heads[n].id)
    assert await store.list_newest("emma", 9) == []


async def test_delete_leaves_nothing_behind_not_even_answers(store, raw):
    before = everything(raw)
    head = await store.create("ann", "m", "d", b"0")
    for n in range(4):
        head = await store.get("ann", head.id)
        await store.write_version("ann", head, b"%d" % n, n, idempotency_key=f"k{n}", answer=b"a")
    await store.delete("ann", head.id)
    assert everything(raw) == before
    with pytest.raises(NotFound, match="no session"):
        await store.write_version("ann", head, b"late", 1)
    assert everything(raw) == before


async def test_state_is_unreadable_in_redis_bound_to_its_place_and_to_its_key(store, raw, client):
    secret = b"my neighbour is called Edna"
    head = await store.create("ann", "m", "d", secret)
    other = await store.create("ann", "m", "d", b"other")
    values = {key: raw.get(key) for key in raw.scan_iter("*:v0")}
    assert not any(secret in value or b"Edna" in key for key, value in values.items())
    mine, theirs = (next(key for key in values if s.id.encode() in key) for s in (head, other))
    raw.set(mine, values[theirs])
    with pytest.raises(Conflict, match="can't be opened"):
        await store.read_version("ann", head.id, 0)
    head = await store.create("ann", "m", "d", b"0")
    stranger = SessionStore(client, TenantCipher(b"another master key"), ttl_s=60)
    with pytest.raises(Conflict, match="key of sessions has changed"):
        await stranger.read_version("ann", head.id, 0)


async def test_unused_session_is_forgotten_and_a_used_one_is_not(client, raw):
    store = SessionStore(client, TenantCipher(MASTER), ttl_s=1000)
    idle, busy = await store.create("ann", "m", "d", b"0"), await store.create("ann", "m", "d", b"0")

    def left(session):
        return [raw.ttl(key) for key in raw.scan_iter(f"*{session.id}*")]

    def expire(session, seconds):
        for key in raw.scan_iter(f"*{session.id}*"):
            raw.expire(key, seconds)

    assert all(0 < seconds <= 1000 for seconds in left(idle))
    expire(idle, 100)
    expire(busy, 100)
    await store.write_version("ann", await store.get("ann", busy.id), b"1", 1)
    assert min(left(busy)) > 100 >= max(left(idle)), "a written session is kept as long as a new one"
    expire(idle, 0)
    assert (await store.get("ann", busy.id)).version == 1
    with pytest.raises(NotFound):
        await store.get("ann", idle.id)


@pytest.mark.parametrize("name", ["", "s_1", "s_" + "*" * 20, "s_0123456789abcdef0123}:head", "../../etc/passwd"])
async def test_name_that_is_none_is_refused_before_redis_sees_it(store, name):
    with pytest.raises(InvalidOption, match="looks like"):
        await store.get("ann", name)


async def test_state_over_the_cap_is_refused(store, monkeypatch):
    monkeypatch.setattr(session_store, "MAX_RECORD_BYTES", 10)
    with pytest.raises(TooLarge, match="11 bytes; 10 are allowed"):
        await store.create("ann", "m", "d", b"x" * 11)


async def test_redis_that_is_away_is_said(own_redis):
    client = RedisClient(own_redis.url)
    store = SessionStore(client, TenantCipher(MASTER), ttl_s=60)
    head = await store.create("ann", "m", "d", b"0")
    own_redis.stop()
    with pytest.raises(NotReady, match="Sessions can't be reached"):
        await store.get("ann", head.id)
    await client.close()


def test_master_key_is_made_once_only_its_owner_may_read_it_and_a_short_one_is_refused(tmp_path):
    first = load_master_key(None, tmp_path / "data")
    assert (first, len(first)) == (load_master_key(None, tmp_path / "data"), 32)
    path = tmp_path / "data" / "session.key"
    assert (stat.S_IMODE(path.stat().st_mode), list(path.parent.iterdir())) == (0o600, [path])
    assert load_master_key("a secret of my own", tmp_path / "none") == b"a secret of my own"
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="16 are needed"):
        TenantCipher(b"short")


async def test_a_tenant_opens_sessions_up_to_its_quota_of_bytes_and_again_when_some_are_gone(client):
    store = SessionStore(client, TenantCipher(MASTER), ttl_s=60, quota_bytes=10_000)
    record = await store.create("ann", "m", "w", b"x" * 4000, state_bytes=4000)
    assert await store.write_version("ann", record, b"x" * 4000, 1, 4000) == 1
    with pytest.raises(RateLimited, match="8,000 bytes of at most 10,000") as refused:
        await store.create("ann", "m", "w", b"x" * 4000, state_bytes=4000)
    assert "DELETE /v1/sessions" in str(refused.value.hint)
    await store.create("bob", "m", "w", b"x" * 4000, state_bytes=4000)
    await store.delete("ann", record.id)
    await store.create("ann", "m", "w", b"x" * 4000, state_bytes=4000)


async def test_answers_of_long_sessions_are_trimmed_to_the_last(client, store):
    record = await store.create("ann", "m", "w", b"x")
    for turn in range(KEPT_ANSWERS + 5):
        await store.write_version("ann", record, b"x", turn, idempotency_key=f"k{turn}", answer=b"a")
        record = await store.get("ann", record.id)
    found = [await store.find_answer("ann", record.id, f"k{turn}") for turn in range(KEPT_ANSWERS + 5)]
    assert found == [None] * 5 + [b"a"] * KEPT_ANSWERS
    await store.delete("ann", record.id)
    assert [key async for key in client.client.scan_iter(f"*{record.id}*")] == [], "nothing of it is left"


async def test_a_tenant_stores_documents_up_to_its_quota_of_bytes(client, raw):
    store = DocumentStore(client, TenantCipher(MASTER), 60, 2**20, quota_bytes=10_000)
    names = [f"doc_{n:024x}" for n in range(4)]
    for name in names[:2]:
        await store.put("ann", name, b"x" * 4000)
    with pytest.raises(RateLimited, match="of at most 10,000") as refused:
        await store.put("ann", names[2], b"x" * 4000)
    assert "DELETE /v1/documents" in str(refused.value.hint)
    await store.put("ann", names[0], b"x" * 4000)  # the same document again
    with pytest.raises(RateLimited):
        await store.put("ann", names[0], b"x" * 7000)  # and again, between more spaces
    await store.put("bob", names[2], b"x" * 4000)
    await store.delete("ann", names[0])
    await store.put("ann", names[2], b"x" * 4000)
    assert await store.list_ids("ann") == [names[2], names[1]]
    record = DocumentText(id=names[1], model="m", name=None, tokens=1, blocks=0, created=0, longctx={}, text="the")
    await store.put("ann", names[1], record.model_dump_json().encode())
    (key,) = raw.keys(f"*{names[1]}")
    raw.expire(key, 9)
    await store.delete("ann", names[2])
    assert ([one.id for one in await DocumentService(store, "ann").list_newest(9)], raw.ttl(key) < 10) == (
        [names[1]],
        True,
    )
    store.list_ids = lambda _: asyncio.sleep(0, [names[0]])  # deleted in between
    assert await DocumentService(store, "ann").list_newest(9) == []
