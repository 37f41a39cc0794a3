"""Two replicas with one Redis: a document that one has read is asked about in the other, which does not read it."""

import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import httpx2
import pytest
import redis
import torch
from safetensors.torch import load, save
from structlog.testing import capture_logs

from fovea_memory.adapters.landmark_options import LandmarkOptions
from fovea_memory.mixers.landmark import LandmarkSession
from fovea_memory.mixers.landmark.serialization import BlocksError
from fovea_memory.models.fovea_landmark_recall import LandmarkRecall
from fovea_memory.request_state import StoredDocument
from fovea_memory.state.document_cache import CHECKPOINT_TOKENS, DocumentCache
from fovea_memory.state.encryption import TenantCipher
from fovea_memory.toy_tokenizers import FILLERS
from plugins.memory.tests.conftest import mixers_app
from plugins.memory.tests.served.conftest import metric
from services.llm_longctx.tests.conftest import Server
from shared.jobs.redis_server import RedisServer
from tests.harness.hypothesis_profiles import in_depth
from tests.harness.waiting import wait_until

MODEL, KEY = "fovea-landmark-recall", "one key for all replicas"
FILL = " ".join([FILLERS] * 20)
TEXT = f"{FILL} dog red {FILL} owl teal {FILL}"
TOKENS = len(TEXT.split())
WHOLE = TOKENS // CHECKPOINT_TOKENS * CHECKPOINT_TOKENS
ANN = {"x-fovea-tenant": "ann"}


@dataclass
class Replica:
    """One process's worth of app, and how many tokens its network has read."""

    http: httpx2.Client
    adapter: Any
    read: int = 0

    def send(self, path, **body):
        """Something of Ann's."""
        answer = self.http.post(f"/v1/{path}", json={"model": MODEL, **body}, headers=ANN)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def store(self, text=TEXT, **more):
        return self.send("documents", text=text, **more)

    def ask(self, name, prompt="? dog", **more):
        options = {"max_tokens": 3, "temperature": 0, "logprobs": 20, **more}
        return self.send("completions", prompt=prompt, document_id=name, **options)

    def forgets(self):
        """Like a replica that has just begun."""
        self.adapter.cache.__init__()
        self.read = 0


@pytest.fixture(scope="module")
def replica(redis_server, tmp_path_factory):
    def start(**more: Any) -> Replica:
        folder = tmp_path_factory.mktemp("replica")
        app = mixers_app(folder, redis_server.url, {MODEL: LandmarkRecall}, session_key=KEY, **more)
        one = Replica(stack.enter_context(Server(app)).http, app.state.host.servable(MODEL).adapter)
        opened = one.adapter.net.session

        def counted(*args, **options):
            session = opened(*args, **options)
            session.__class__ = type("Counted", (LandmarkSession,), {"feed": feed})
            return session

        def feed(session, tokens):
            one.read += tokens.shape[1]
            return LandmarkSession.feed(session, tokens)

        one.adapter.net.session = counted
        return one

    with ExitStack() as stack:
        yield start


@pytest.fixture(scope="module")
def pair(replica):
    return replica(), replica()


@pytest.fixture
def two(pair, redis_server):
    redis.Redis.from_url(redis_server.url).flushall()
    for one in pair:
        one.forgets()
    return pair


def _blobs(redis_server: RedisServer) -> list[bytes]:
    return redis.Redis.from_url(redis_server.url).keys("*:blocks")


def _said(answer: dict[str, Any]) -> Any:
    return answer["choices"], answer["longctx"]


def _told(answer: dict[str, Any]) -> Any:
    """The same without what a request counts that reads its document first."""
    return answer["choices"], answer["longctx"]["citations"], answer["longctx"]["cited_tokens"]


KEPT = [{}, {"capacity": 9}, {"offload": "cpu"}, {"offload": "disk"}]
WAYS = [*product(KEPT, ({}, {"blocks": 3, "selection": "max_over_tokens"}))]


@pytest.mark.parametrize(("knobs", "asked"), in_depth(WAYS, [WAYS[1], WAYS[2], WAYS[6]]))
def test_filled_in_one_it_is_asked_in_the_other_without_being_read_again(two, knobs, asked):
    first, second = two
    document = first.store(longctx=knobs)
    assert (document["shared"], document["cached_tokens"]) == (True, 0)
    own = first.ask(document["id"], longctx=asked)
    before = metric(second.http, "landmark_documents_total")
    fetched = second.ask(document["id"], longctx=asked)
    assert _said(fetched) == _said(own)
    assert fetched["longctx"]["citations"]
    assert fetched["usage"]["longctx"]["cached_tokens"] == WHOLE
    # The end that fills no stretch, the question, and the answer but for its last token.
    assert (second.read, metric(second.http, "landmark_documents_total")) == (TOKENS - WHOLE + 2 + 2, before + 1)
    second.ask(document["id"], "? owl", longctx=asked)
    assert second.read == 2 * (TOKENS - WHOLE + 2 + 2)


def test_storing_it_again_elsewhere_reads_nothing_but_its_end(two):
    first, second = two
    name = first.store()["id"]
    again = second.store()
    assert (again["id"], again["cached_tokens"], again["shared"], second.read) == (name, WHOLE, True, TOKENS - WHOLE)
    assert second.store(f"{TEXT} {FILL} ant blue")["cached_tokens"] == WHOLE
    other = second.store(longctx={"blocks": 1})
    assert (other["id"] != name, other["cached_tokens"]) == (True, 0)


def test_deleted_its_blocks_are_gone_too(two, redis_server):
    first, second = two
    name = first.store()["id"]
    second.ask(name)
    assert (len(_blobs(redis_server)), second.http.delete(f"/v1/documents/{name}", headers=ANN).status_code) == (1, 200)
    assert (redis.Redis.from_url(redis_server.url).keys("fovea:documents*"), _blobs(redis_server)) == ([], [])
    body = {"model": MODEL, "prompt": "? dog", "document_id": name}
    assert {one.http.post("/v1/completions", json=body, headers=ANN).status_code for one in two} == {404}


def test_another_tenant_gets_no_blocks(two, redis_server):
    first, second = two
    name = first.store()["id"]
    bobs = second.http.post("/v1/documents", json={"model": MODEL, "text": TEXT}, headers={"x-fovea-tenant": "bob"})
    assert (bobs.json()["id"], bobs.json()["cached_tokens"]) == (name, 0)  # the same text, and yet read again
    assert (second.read, len(_blobs(redis_server))) == (TOKENS, 2)


def _resealed(change: Callable[[bytes], bytes]) -> Callable[[bytes, str], bytes]:
    """Somebody with the key, or an older version of us, wrote something else."""
    cipher = TenantCipher(KEY.encode())
    return lambda encrypted, place: cipher.encrypt(change(cipher.decrypt(encrypted, "ann", place)), "ann", place)


def _tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[bytes, str], bytes]:
    def changed(data: bytes) -> bytes:
        told = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        return save(change(load(data)), told)

    return _resealed(changed)


BROKEN: dict[str, Callable[[bytes, str], bytes]] = {
    "a byte is another": lambda encrypted, _: encrypted[:900] + bytes([encrypted[900] ^ 1]) + encrypted[901:],
    "another beginning": _resealed(lambda data: re.sub(rb'("beginning":")\w', rb"\1x", data)),
    "no words": _resealed(lambda data: save(load(data))),
    "a tensor less": _tensors(lambda t: {k: v for k, v in t.items() if k != "layers.1.tail"}),
    "another shape": _tensors(lambda t: {k: v[:-1].clone() if k == "layers.0.blocks" else v for k, v in t.items()}),
    "another type": _tensors(lambda t: {k: v.double() for k, v in t.items()}),
    "not finite": _tensors(lambda t: {k: v.fill_(torch.nan) if k == "layers.1.blocks" else v for k, v in t.items()}),
}


@pytest.mark.parametrize("how", in_depth(BROKEN, ["a byte is another", "not finite"]))
def test_blocks_that_are_not_what_they_should_be_are_read_again_and_replaced(two, redis_server, how):
    first, second = two
    name = first.store()["id"]
    own = first.ask(name)
    client, (place,) = redis.Redis.from_url(redis_server.url), _blobs(redis_server)
    good = client.get(place)
    bad = BROKEN[how](good, place.decode())
    assert bad != good
    client.set(place, bad)
    before = metric(second.http, "landmark_blocks_unshared_total")
    again = second.ask(name)
    assert (_told(again), again["usage"]["longctx"]["cached_tokens"]) == (_told(own), 0)
    assert (second.read, metric(second.http, "landmark_blocks_unshared_total")) == (TOKENS + 2 + 2, before + 1)
    wait_until(lambda: client.get(place) != bad, 10)
    second.forgets()
    assert (_said(second.ask(name)), second.read) == (_said(own), TOKENS - WHOLE + 2 + 2)


def test_other_weights_take_nothing_from_these(two):
    first, second = two
    name = first.store()["id"]
    document = StoredDocument(name, "ann", TEXT, tuple(second.adapter.tokenize(TEXT, "text")), LandmarkOptions())
    blocks = first.adapter.export_blocks(document, first.adapter.find_session(document))
    for other in (replace(second.adapter, digest="0" * 64, cache=DocumentCache()), second.adapter):
        wrong = document if other is not second.adapter else replace(document, tenant="bob")
        with pytest.raises(BlocksError, match="other weights"):
            other.import_blocks(wrong, blocks)
    second.adapter.import_blocks(document, blocks)
    assert second.adapter.find_session(document) is not None


def test_over_the_cap_it_is_read_again_and_said_so(replica, redis_server, two):
    small, other = replica(document_cache_max_bytes=100_000), two[1]
    before = metric(small.http, "landmark_blocks_unshared_total")
    with capture_logs() as lines:
        document = small.store()
    assert document["shared"] is False
    assert (_blobs(redis_server), metric(small.http, "landmark_blocks_unshared_total")) == ([], before + 1)
    assert any("FOVEA_DOCUMENT_CACHE_MAX_BYTES is 100,000" in line.get("detail", "") for line in lines)
    assert (_told(other.ask(document["id"])), other.read) == (_told(small.ask(document["id"])), TOKENS + 2 + 2)


def test_longest_unused_blocks_of_a_tenant_go_first(replica, redis_server, two):
    one = replica(document_cache_max_bytes=1_300_000)  # two of these documents, not three
    names = [one.store(f"{word} {TEXT}")["id"] for word in ("the", "of")]
    assert len(_blobs(redis_server)) == 2
    one.ask(names[0])
    names.append(one.store(f"and {TEXT}")["id"])
    kept = {place.decode().split(":")[-2] for place in _blobs(redis_server)}
    assert (kept, two[1].ask(names[1])["usage"]["longctx"]["cached_tokens"]) == ({names[0], names[2]}, 0)
    two[1].forgets()
    assert two[1].ask(names[0])["usage"]["longctx"]["cached_tokens"] == WHOLE


def test_without_room_nothing_is_kept_and_short_texts_need_none(replica, redis_server, two):
    assert replica(document_cache_max_bytes=0).store()["shared"] is False
    assert two[0].store(FILLERS)["shared"] is False
    assert _blobs(redis_server) == []


def test_blocks_live_as_long_as_their_document(two, redis_server):
    name = two[0].store()["id"]
    client, (place,) = redis.Redis.from_url(redis_server.url), _blobs(redis_server)
    record = place.removesuffix(b":blocks")
    for one in two:
        for key in (place, record):
            client.pexpire(key, 60_000)
        one.ask(name)
        assert abs(client.pttl(place) - client.pttl(record)) < 30_000
        assert client.pttl(place) > 3_600_000
