"""Watching a process: work past its deadline, a deaf loop, memory that runs away; its metrics and HEALTHCHECK."""

import asyncio
import contextlib
import math
import socket
import subprocess
import sys
import textwrap
import threading
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx2
import pytest
import redis
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from starlette.responses import Response
from structlog.testing import capture_logs

from fovea.api.replica import ReplicaRecord, replicas_key
from fovea.errors import FoveaError, NotReady
from shared.registry import CallContext
from shared.serving import health_check, metrics_server, watchdog, watched_work
from shared.serving.batching import Batcher, BatchOptions
from shared.serving.health_check import is_healthy
from shared.serving.memory_guard import EXIT_STATUS, find_memory_limit, read_resident_bytes
from shared.serving.metrics_server import GpuMemory
from shared.serving.watchdog import RESTART_AFTER_S, Watchdog
from shared.serving.watched_work import CURRENT_RUN, OVERDUE_S, WatchedExecutor, WatchedWork
from shared.settings import Settings
from tests.harness.serving import serve_in_thread
from tests.harness.waiting import free_port, until


async def test_work_past_its_deadline_makes_a_replica_not_ready_until_it_ends(start_client, tmp_path, clock):
    clock.govern(watched_work)
    client = await start_client({}, data_dir=tmp_path)
    host, release = client.app.state.host, threading.Event()
    CURRENT_RUN.set(CallContext(deadline=clock.monotonic() + 2))
    with WatchedExecutor(host.work, 1) as pool:
        stuck = asyncio.get_running_loop().run_in_executor(pool, release.wait)
        clock.advance(2 + OVERDUE_S - 0.1)
        assert (await client.get("/readyz")).status_code == 200
        clock.advance(0.2)
        told = await client.get("/readyz")
        assert told.status_code == 503
        assert "1 threads work past their deadline: Event.wait" in told.json()["missing"]["watchdog"]
        assert not host.settled, "the gateway sends no new work"
        release.set()
        await stuck
        assert (await client.get("/readyz")).status_code == 200


@pytest.mark.parametrize(("stream_ms", "whole_s"), [(None, 5), ("0", math.inf), ("9000", 9)])
async def test_requests_give_their_deadline_to_the_threads_that_work_for_them(
    start_client, tmp_path, stream_ms, whole_s
):
    from fastapi import APIRouter, Request

    routes, seen = APIRouter(), list[Any]()

    @routes.post("/v1/think")
    async def think(request: Request) -> None:
        loop = asyncio.get_running_loop()
        with WatchedExecutor(request.app.state.host.work, 1) as pool:
            await loop.run_in_executor(pool, lambda: seen.extend(request.app.state.host.work._running.values()))

    client = await start_client({}, routers=[routes], data_dir=tmp_path)
    headers = {"x-fovea-deadline-ms": "5000"} | ({} if stream_ms is None else {"x-fovea-stream-ms": stream_ms})
    await client.post("/v1/think", headers=headers)
    ((_, run, _),) = seen
    assert 4 < run.deadline - time.monotonic() <= 5
    assert (whole_s - 1 <= run.ends_at - time.monotonic() <= whole_s, client.app.state.host.work._running) == (True, {})


def test_work_without_a_deadline_is_never_overdue(clock):
    clock.govern(watched_work)
    work, late = WatchedWork(), CallContext(deadline=clock.monotonic())
    frame = CallContext(deadline=clock.monotonic() - 1000)
    with work.watch("job", CallContext()), work.watch("late", late):
        clock.advance(1)
        with work.watch("frame", frame):
            clock.advance(OVERDUE_S - 0.5)
            assert work.list_overdue() == ["late"], "a frame has its time from its beginning"
        clock.advance(0.5)
        assert (work.list_overdue(), work.list_overdue(5)) == (["late"], [])
        clock.advance(5)
        assert work.list_overdue(5) == ["late"]
    assert work.list_overdue() == []


def test_a_process_ends_only_for_trouble_that_lasts():
    trouble, ended = {"lasting": 0.0}, list[str]()
    dog = Watchdog(lambda lasting: "stuck" if trouble["lasting"] > lasting else "", ended.append)
    for lasting, ends in ((0.0, 0), (5.0, 0), (RESTART_AFTER_S - 1, 0), (0.0, 0), (RESTART_AFTER_S + 1, 1)):
        trouble["lasting"] = lasting
        dog.check()
        assert len(ended) == ends


class Broken(BaseException):
    """An error that no model should raise."""


async def test_callers_of_a_batch_that_breaks_off_are_answered_and_the_thread_goes_on():
    breaks = [True]

    def work(_key: Any, items: Any, _run: CallContext) -> Any:
        if breaks.pop() if breaks else False:
            raise Broken
        return items

    batcher: Batcher[int, int] = Batcher(work, BatchOptions(), service="toy", model="broken")
    with pytest.raises(FoveaError, match="The model broken"):
        await asyncio.wait_for(batcher.submit(1, CallContext()), 10)
    assert (await asyncio.wait_for(batcher.submit(2, CallContext()), 10), not batcher.is_dead) == (2, True)
    await batcher.close(1)
    assert not batcher.is_dead


async def test_a_thread_that_dies_leaves_nobody_waiting(monkeypatch):
    begun, go = threading.Event(), threading.Event()

    def work(_key: Any, items: Any, _run: CallContext) -> Any:
        begun.set()
        go.wait(10)
        return items

    batcher: Batcher[int, int] = Batcher(work, BatchOptions(size=1), service="toy", model="dead")
    first = asyncio.create_task(batcher.submit(1, CallContext()))
    await asyncio.to_thread(begun.wait, 10)
    second = asyncio.create_task(batcher.submit(2, CallContext()))
    await asyncio.sleep(0)
    monkeypatch.setattr(batcher, "_select", lambda: 1 / 0)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    go.set()
    assert await asyncio.wait_for(first, 10) == 1
    with pytest.raises(NotReady, match="has ended") as ended:
        await asyncio.wait_for(second, 10)
    assert ended.value.hint == "Send the request again."
    batcher._threads[0].join(10)
    assert batcher.is_dead
    with pytest.raises(NotReady):
        await batcher.submit(3, CallContext())


def run_until_it_ends(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_process_whose_loop_is_deaf_is_ended_with_its_stacks_also_while_the_interpreter_is_held():
    done = run_until_it_ends(
        """
        import asyncio, re, time
        from shared.serving.watchdog import LoopTimer

        async def main():
            stopped = LoopTimer(0.2)
            stopped.start()
            stopped.stop()
            time.sleep(0.6)
            LoopTimer(1.0).start()
            await asyncio.sleep(2.5)
            print("a loop that runs is left alone, and a timer that is stopped ends nothing", flush=True)
            hold_the_interpreter()

        def hold_the_interpreter():
            re.match(r"(a+)+$", "a" * 60 + "b")

        asyncio.run(main())
        """
    )
    assert (done.returncode, "left alone" in done.stdout, "Timeout" in done.stderr) == (1, True, True)
    assert "hold_the_interpreter" in done.stderr


def test_the_kernel_refuses_memory_beyond_the_limit_in_one_piece_or_many():
    done = run_until_it_ends(
        """
        from shared.serving.watchdog import bound_memory
        bound_memory(200 * 2**20)
        for size in (2**30, 2**20):
            held = []
            try:
                while True:
                    held.append(bytearray(size))
            except MemoryError:
                got = len(held) * size
                del held
                print(got < 320 * 2**20)
        """
    )
    assert done.stdout.split() == ["True", "True"], done.stderr


STUCK = """
import asyncio, sys, threading, time
from shared.registry import CallContext
from shared.serving import watchdog, watched_work
from shared.serving.build_app import build
from shared.serving.http.errors import to_safe_error
from shared.serving.replica import ReplicaServer
from shared.serving.watched_work import CURRENT_RUN
from shared.settings import Settings
from shared.telemetry import configure_logs

watched_work.OVERDUE_S, watchdog.RESTART_AFTER_S, watchdog.CHECK_INTERVAL_S = 0.2, 0.5, 0.05

async def main():
    settings = Settings(data_dir=sys.argv[1], shutdown_grace_s=0.5)
    server = ReplicaServer(build("toy", servables={}, settings=settings), settings, owns_process=True)
    await server.start()
    if len(sys.argv) > 2:
        configure_logs()
        to_safe_error(RuntimeError(sys.argv[2]), "The model toy")
        await asyncio.sleep(20)
    CURRENT_RUN.set(CallContext(deadline=time.monotonic()))
    await asyncio.to_thread(never_ends)

def never_ends():
    threading.Event().wait()

asyncio.run(main())
"""


def test_a_replica_that_does_not_recover_ends_itself_and_shows_where_it_is_stuck(tmp_path):
    done = run_until_it_ends(STUCK, str(tmp_path))
    assert done.returncode == watchdog.EXIT_STATUS, done.stderr
    assert ("never_ends" in done.stderr, "takes no new work" in done.stdout + done.stderr) == (True, True)


def test_a_replica_whose_gpu_is_lost_ends_itself_at_once(tmp_path):
    done = run_until_it_ends(STUCK, str(tmp_path), "CUDA failure 700: an illegal memory access was encountered ; GPU=0")
    assert done.returncode == watchdog.EXIT_STATUS, done.stderr
    assert "The GPU answers nothing more" in done.stdout + done.stderr


async def test_a_replica_that_outgrows_its_memory_says_so_in_its_last_record(start_replica, redis_url, monkeypatch):
    ends: list[int] = []
    monkeypatch.setattr("shared.serving.replica.os._exit", ends.append)
    with capture_logs() as lines:
        made = await start_replica({}, redis_url=redis_url, replica_memory_bytes=read_resident_bytes() + 2**30)
        made._guard.limit = 2**20
        await until(lambda: ends)
    with redis.Redis.from_url(redis_url) as client:
        (last,) = map(ReplicaRecord.model_validate_json, client.hvals(replicas_key("toy")))
    assert (ends, last.out_of_memory, last.ready, last.memory > 1) == ([EXIT_STATUS], True, False, True)
    assert "FOVEA_REPLICA_MEMORY_BYTES" in last.trouble
    assert last.trouble in [line.get("reason") for line in lines]


def test_memory_is_limited_even_where_nobody_says_so_but_not_where_there_is_no_limit_or_a_gpu(monkeypatch):
    assert find_memory_limit(Settings(replica_memory_bytes=5)) == 5
    assert find_memory_limit(Settings(replica_memory_bytes=0)) == 0
    assert find_memory_limit(Settings()) > read_resident_bytes() > 2**20
    asked = []
    monkeypatch.setattr(watchdog.resource, "setrlimit", lambda *given: asked.append(given))
    watchdog.bound_memory(0)
    monkeypatch.setattr(watchdog.Path, "exists", lambda _: True)
    watchdog.bound_memory(2**30)
    assert asked == []


SHARING = """
import os, pathlib, sys, time
from shared.serving.memory_guard import MemoryGuard, MemoryShares

shares = MemoryShares(pathlib.Path(sys.argv[1]), int(sys.argv[2]) * 2**20)
guard = MemoryGuard(2**40, lambda: os._exit(137), shares)
held = bytearray(b"x") * (int(sys.argv[3]) * 2**20)
time.sleep(20)
"""


def test_of_processes_that_take_too_much_together_the_largest_ends_itself(tmp_path):
    with contextlib.ExitStack() as stack:
        processes = []
        for folder, size in ((tmp_path, 120), (tmp_path, 450), (tmp_path / "other", 200)):
            command = [sys.executable, "-c", SHARING, str(folder), "500", str(size)]
            processes.append(stack.enter_context(subprocess.Popen(command)))
            stack.callback(processes[-1].kill)
        small, large, alone = processes
        assert large.wait(15) == EXIT_STATUS
        with pytest.raises(subprocess.TimeoutExpired):
            small.wait(1)  # what the dead one had is free again
        assert alone.poll() is None


async def test_replica_counts_its_requests_on_a_port_of_its_own_which_a_predecessor_may_still_have(
    start_replica, tmp_path, monkeypatch
):
    tries = []

    def start(port, host):
        tries.append(port)
        return start_http_server(port, host)

    monkeypatch.setattr(metrics_server, "start_http_server", start)
    monkeypatch.setattr(metrics_server, "_RETRY_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        replica = await start_replica(data_dir=tmp_path, metrics_port=port)
        await until(lambda: len(tries) >= 3, 60)
    count = len(tries)
    await until(lambda: len(tries) > count, 60)
    async with httpx2.AsyncClient() as client:
        assert (await client.post(f"{replica.http}/v1/echo", json={"text": "hello"})).status_code == 200
        told = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    assert 'fovea_batch_size_count{model="toy/echo",service="toy"}' in told
    await replica.stop()
    socket.create_server(("127.0.0.1", port)).close()


def scrape(collector):
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()


TWO_DEVICES = SimpleNamespace(
    is_available=lambda: True, device_count=lambda: 2, memory_allocated=lambda device: 7 * device,
    mem_get_info=lambda device: (10 * (device + 1), 100),
)  # fmt: skip


def test_each_device_has_used_free_and_allocated_bytes_and_none_without_a_gpu(monkeypatch):
    text = scrape(GpuMemory(TWO_DEVICES))
    for sample in ('used_bytes{device="0"} 90.0', 'free_bytes{device="1"} 20.0', 'allocated_bytes{device="1"} 7.0'):
        assert f"fovea_gpu_memory_{sample}" in text
    assert scrape(GpuMemory()) == ""
    for name in ("torch", "torch.cuda"):  # a model's thread is importing it
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert scrape(GpuMemory()) == ""


def test_who_listens_on_the_main_port_says_it_himself_and_a_worker_is_known_by_its_metrics(monkeypatch):
    monkeypatch.setattr(health_check, "_TIMEOUT_S", 0.5)
    with contextlib.ExitStack() as stack:
        made = (serve_in_thread(Response(status_code=status), lifespan="off") for status in (200, 503))
        good, bad = (int(stack.enter_context(one).rpartition(":")[2]) for one in made)
        hangs = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        assert [is_healthy(main, good) for main in (good, bad, hangs, free_port())] == [True, False, False, True]
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")  # is not asked for the loopback
        assert is_healthy(good, good) is True
    assert is_healthy(free_port(), free_port()) is False
