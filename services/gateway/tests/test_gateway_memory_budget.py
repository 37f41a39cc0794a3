"""The memory budget of bodies: what one tenant may hold of it, and what is left for the others."""

import asyncio
from urllib.parse import urlsplit

from services.gateway.policy.auth import KeyRing
from services.gateway.policy.memory_budget import MemoryBudget
from tests.harness.waiting import until


def test_a_tenant_holds_half_of_what_the_others_leave():
    budget = MemoryBudget(1000, shared=True)
    assert budget.take(300, "alice")
    assert budget.take(200, "alice")
    assert not budget.take(1, "alice")
    assert budget.take(250, "carol")
    assert not budget.take(1, "carol")
    assert budget.take(125, "dave")
    assert budget.left == 125
    budget.release(300, "alice")
    assert budget.take(112, "alice"), "half of 200 and 425"
    assert not budget.take(2, "alice")


def test_the_first_piece_of_a_tenant_may_be_larger_than_its_share():
    budget = MemoryBudget(100, shared=True)
    assert budget.take(50, "alice")
    assert budget.take(50, "bob")
    assert not budget.take(1, "carol")
    budget.release(50, "bob")
    assert budget.left == 50


def test_a_single_tenant_may_hold_everything():
    budget = MemoryBudget(100)
    assert all(budget.take(10, "local") for _ in range(10))
    assert not budget.take(1, "local")


async def test_bodies_that_one_tenant_holds_open_leave_another_room(gateway, toy, tmp_path):
    ring = KeyRing(tmp_path / "keys.json")
    (_, alice), (_, bob) = ring.add("alice", ("infer", "jobs")), ring.add("bob", ("infer", "jobs"))
    scene = await gateway(auth="keys", max_body_bytes=100_000)
    upstream = await toy()
    scene.announce(upstream.url, models=("pranet",))
    budget = scene.app.state.gateway.proxy.budget
    address, writers = urlsplit(scene.url), []
    for _ in range(9):
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        head = f"POST /v1/files HTTP/1.1\r\nHost: x\r\nx-api-key: {alice}\r\nContent-Length: 99000\r\n\r\n"
        writer.write(head.encode() + b"x" * 98_000)
        writers.append(writer)
    await until(lambda: budget.left <= 8 * 100_000 // 2 + 100_000)
    await asyncio.sleep(0.1)
    assert budget.left >= 8 * 100_000 // 2, "alice holds half at most"
    form = {"purpose": (None, "batch"), "file": ("a.jsonl", b"{}" * 40_000)}
    answer = await scene.client.post("/v1/files", files=form, headers={"x-api-key": bob})
    assert answer.status_code == 200
    for writer in writers:
        writer.close()
    await until(lambda: budget.left == 8 * 100_000)
