"""The memory budget of bodies: what one tenant may hold of it, and what is left for the others."""

import asyncio
from urllib.parse import urlsplit

from services.gateway.policy.memory_budget import MemoryBudget
from tests.harness.waiting import until


def test_a_tenant_holds_half_of_what_the_others_leave_and_a_single_one_everything():
    budget = MemoryBudget(1000, shared=True)
    takes = ((300, "alice", True), (200, "alice", True), (1, "alice", False), (250, "carol", True), (1, "carol", False))
    assert all(budget.take(size, tenant) is is_given for size, tenant, is_given in (*takes, (125, "dave", True)))
    assert budget.left == 125
    budget.release(300, "alice")
    assert budget.take(112, "alice"), "half of 200 and 425"
    assert not budget.take(2, "alice")
    small = MemoryBudget(100, shared=True)  # whose first pieces may be larger than a share
    assert [small.take(*one) for one in ((50, "alice"), (50, "bob"), (1, "carol"))] == [True, True, False]
    small.release(50, "bob")
    assert small.left == 50
    single = MemoryBudget(100)
    assert [single.take(10, "local") for _ in range(11)] == [True] * 10 + [False]


async def test_bodies_that_one_tenant_holds_open_leave_another_room(served, ring):
    (_, alice), (_, bob) = ring.add("alice", ("infer", "jobs")), ring.add("bob", ("infer", "jobs"))
    scene = await served(auth="keys", max_body_bytes=100_000)
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
