"""Children are kept alive and leave nothing behind; a worker and a replica as processes; replicas that Ray places."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import httpx2
import psutil
import pytest
import redis
import typer
from typer.testing import CliRunner

from fovea.api.replica import HEARTBEAT_TTL_S, ReplicaRecord, replicas_key
from shared.jobs.queue import Payload
from shared.serving import __main__ as replica_command
from shared.serving import worker
from shared.serving.build_app import build
from shared.serving.replica import ReplicaServer
from shared.serving.up import orphan_cleanup
from shared.serving.up.processes import ProcessDied, ProcessGroup
from shared.settings import Settings, environment
from tests.harness.waiting import free_port, until, wait_until

NAP = "import time; time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
ONCE = f"""
import os, sys
again = os.path.exists("ran")
print("again" if again else "first", flush=True)
if not again:
    open("ran", "w").close()
    sys.exit(3)
{NAP}
"""
FAMILY = """
import os, subprocess, sys, time
inside = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
apart = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], process_group=0)
print(inside.pid, apart.pid, flush=True)
time.sleep(60)
"""


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ignores(pid, number):
    with open(f"/proc/{pid}/status") as facts:  # noqa: PTH123
        (mask,) = (line.split()[1] for line in facts if line.startswith("SigIgn"))
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.fixture
def modules(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    for name, code in {
        "nap": NAP, "stubborn": STUBBORN, "family": FAMILY, "once": ONCE,
        "doomed": "print('why it died', flush=True)\nraise SystemExit(7)",
        "set_wrong": "print('why it died', flush=True)\nraise SystemExit(2)",
        "shows": f"import os; print(os.environ['FOVEA_X'], os.getsid(0) == os.getpid(), flush=True); {NAP}",
    }.items():  # fmt: skip
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
    return tmp_path


@pytest.fixture
async def children(modules):
    said = []
    made = ProcessGroup(modules / "logs", {"FOVEA_X": "given"}, said.append, grace_s=1.0)
    made.said = said
    yield made
    await made.stop()


async def test_child_has_its_environment_session_and_log_and_is_started_again_when_it_ends(children):
    child = await children.add("the child", "shows")
    await until(lambda: "\n" in child.log.read_text())
    assert (child.log.name, child.log.read_text()) == ("the-child.log", "given True\n")
    child = await children.add("own", "shows", FOVEA_X="own")
    await until(lambda: "own True\n" in child.log.read_text())
    child = await children.add("once", "once")
    await until(lambda: "again\n" in child.log.read_text())
    assert child.log.read_text() == "first\nagain\n"
    assert children.said == [f"once ended (exit code 3); starting it again in 0.5 s. Log: {child.log}"]


@pytest.mark.parametrize(("name", "told", "restarts"), [
    ("doomed", "doomed ended 5 times in a minute", 4), ("set_wrong", "set_wrong can't start", 0),
])  # fmt: skip
async def test_child_that_dies_again_and_again_or_for_a_setting_is_given_up_on_with_its_log_tail(
    children, monkeypatch, name, told, restarts
):
    monkeypatch.setattr("shared.serving.up.processes._FIRST_RESTART_PAUSE_S", 0.001)
    await children.add(name, name)
    with pytest.raises(ProcessDied, match=rf"{told}(?s:.*)why it died"):
        await asyncio.wait_for(asyncio.shield(children.failed), 20)
    assert len(children.said) == restarts


async def test_all_are_stopped_the_last_started_first(children):
    first, second = await children.add("a", "nap"), await children.add("b", "nap")
    ended = []
    for child in (first, second):
        waiting = asyncio.get_running_loop().create_task(child.process.wait())
        waiting.add_done_callback(lambda _, name=child.name: ended.append(name))
    await asyncio.sleep(0)
    await children.stop()
    await until(lambda: len(ended) == 2)
    assert (ended, children.said) == (["b", "a"], [])


async def test_what_ignores_sigterm_is_killed_after_the_grace_and_grandchildren_in_whatever_group_they_are(children):
    stubborn, family = [await children.add(name, name) for name in ("stubborn", "family")]
    await until(lambda: "\n" in stubborn.log.read_text() and "\n" in family.log.read_text())
    pids = [stubborn.process.pid, *(int(word) for word in family.log.read_text().split())]
    assert all(alive(pid) for pid in pids)
    begun = time.monotonic()
    await asyncio.wait_for(children.stop(), 60)
    assert time.monotonic() - begun > 0.9, "it had its grace"
    assert not any(alive(pid) for pid in pids)


def test_guard_ends_what_is_left_when_its_supervisor_is_gone():
    code = f"""
import subprocess, sys, time
command = [sys.executable, "-m", "shared.serving.up.orphan_cleanup"]
watch = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
child = subprocess.Popen([sys.executable, "-c", {NAP!r}], start_new_session=True)
ended = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
watch.stdin.write(f"+{{child.pid}}\\n+{{ended.pid}}\\n-{{ended.pid}}\\n".encode())
watch.stdin.flush()
print(watch.pid, child.pid, flush=True)
time.sleep(60)
"""
    supervisor = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    watch, child = (int(word) for word in supervisor.stdout.readline().split())
    wait_until(lambda: ignores(watch, signal.SIGTERM), 60)
    for number in (signal.SIGTERM, signal.SIGINT):  # only the supervisor's end counts
        os.kill(watch, number)
    time.sleep(0.2)
    assert (alive(child), alive(watch)) == (True, True)
    supervisor.kill()
    supervisor.communicate()
    wait_until(lambda: not alive(child) and not alive(watch), 60)


@pytest.fixture
def start(redis_url, tmp_path):
    children: list[subprocess.Popen[bytes]] = []
    env = {
        **os.environ, "FOVEA_REDIS_URL": redis_url, "FOVEA_DATA_DIR": str(tmp_path),
        "FOVEA_SHUTDOWN_GRACE_S": "0.5", "FOVEA_JOB_LEASE_S": "1",
    }  # fmt: skip

    def begin(*module: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", *(module or ("shared.serving.worker", "toy"))]
        with (tmp_path / "workers.log").open("ab") as log:
            children.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
        return children[-1]

    yield begin
    for child in children:
        child.kill()
        child.wait()


def ask(path: str, **body: object) -> Payload:
    return Payload("toy", path, json.dumps(body).encode(), {"content-type": "application/json"})


async def test_jobs_go_through_worker_and_replica_and_come_back_at_sigterm(queue, start):
    worker, _ = start(), start("shared.serving.tests.toy_replica")
    first, _ = await queue.submit(ask("/v1/probe", text="ab", sleep=1.0, times=2))
    async with asyncio.timeout(90):
        told = [(now.status, now.note) async for now in queue.events(first.id, "local")]
    assert told[0] == ("queued", None)
    assert any(status == "running" and (note or "").startswith("step ") for status, note in told)
    assert told[-1] == ("succeeded", None)
    assert json.loads((await queue.result(first.id, "local")).body)["text"] == "abab"
    last, _ = await queue.submit(ask("/v1/probe", text="a", sleep=30))
    async with asyncio.timeout(90):
        await anext(now async for now in queue.events(last.id, "local") if now.note == "step 0")
    worker.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait, 60) == 0
    back = await queue.get(last.id, "local")
    assert (back.status, back.position, await queue.workers("toy")) == ("queued", 0, [])


def test_an_idle_worker_holds_no_framework():
    look = "import sys, shared.serving.worker; print({'torch', 'numpy', 'fastapi', 'starlette'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"


def test_what_can_not_start_ends_in_a_clear_line(tmp_path, monkeypatch):
    settings = Settings(redis_url=None, data_dir=tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:

        def start(_service, http_port, _grpc_port):
            app = build("toy", servables={}, settings=settings)
            asyncio.run(ReplicaServer(app, settings, http_port=http_port).start())

        monkeypatch.setattr(replica_command, "run_replica", start)
        monkeypatch.setattr(worker, "settings", lambda: settings)
        monkeypatch.setattr(worker.telemetry, "configure_logs", lambda *_: None)
        port = str(taken.getsockname()[1])
        for command, words, code, told in (
            (worker.main, ["toy"], 2, "A worker needs FOVEA_REDIS_URL."),
            (replica_command.main, ["nope"], 2, "medical-seg"),
            (replica_command.main, ["relevance-judge", "--http-port", port], 1, "Can't start: "),
        ):
            app = typer.Typer()
            app.command()(command)
            ended = CliRunner().invoke(app, words)
            assert (ended.exit_code, told in ended.output) == (code, True), ended.output


def test_it_serves_on_the_stated_ports_until_sigterm():
    http, grpc = free_port(), free_port()
    env = environment(FOVEA_LOG_FORMAT="json", FOVEA_SHUTDOWN_GRACE_S="1")
    env.pop("FOVEA_REDIS_URL", None)
    words = ["shared.serving", "relevance-judge", "--http-port", str(http), "--grpc-port", str(grpc)]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([sys.executable, "-m", *words], env=env, **how)

    def ask():
        with contextlib.suppress(httpx2.ConnectError):
            return httpx2.get(f"http://127.0.0.1:{http}/livez").json()

    assert wait_until(ask, 120) == {"status": "alive"}
    with socket.create_connection(("127.0.0.1", grpc), 5):
        pass
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert (process.returncode, '"serving"' in said, "Traceback" in said) == (0, True, False)


DRIVER = """
import signal, threading
from shared.serving import ray
from shared.settings import settings

over = threading.Event()
folder = ray.start(settings())
signal.signal(signal.SIGTERM, lambda *_: over.set())
app = "shared.serving.tests.toy_app:app"
ray.application({"service": "toy", "app": app, "max_replicas": 2, "max_per_node": 1})  # a Serve config is a mapping
slow = ray.Placement(service="slow", app="shared.serving.tests.toy_app:slow")
ray.deploy([ray.Placement(service="toy", app=app), ray.Placement(service="two", app=app, max_replicas=2), slow])
print("placed", flush=True)
over.wait()
ray.stop(folder)
"""


NICENESS = 3


@pytest.fixture
def data_dir():
    """A folder with a short path: Ray's sockets are below it."""
    with tempfile.TemporaryDirectory(prefix="f") as folder:
        yield Path(folder)


@pytest.fixture
def cluster(redis_url, data_dir):
    env = environment(FOVEA_REDIS_URL=redis_url, FOVEA_DATA_DIR=str(data_dir), FOVEA_SHUTDOWN_GRACE_S="1")
    env["RAY_memory_usage_threshold"] = "0.01"  # as where other programs have taken nearly all memory
    command = ["nice", "-n", str(NICENESS), sys.executable, "-c", DRIVER]
    driver = subprocess.Popen(command, env=env, start_new_session=True, stdout=subprocess.PIPE, text=True)
    with redis.Redis.from_url(redis_url) as link:
        yield driver, link
    orphan_cleanup.end_sessions([driver.pid], 5)
    driver.communicate()


def ready(link):
    found = [ReplicaRecord.model_validate_json(value) for value in link.hvals(replicas_key("toy"))]
    return [replica for replica in found if replica.ready and time.time() - replica.seen < HEARTBEAT_TTL_S]


def listening(session):
    addresses = set()
    for pid in orphan_cleanup.session_members(session):
        with contextlib.suppress(psutil.NoSuchProcess):
            found = psutil.Process(pid).net_connections("inet")
            addresses |= {one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN}
    return addresses


@pytest.mark.release
def test_replicas_are_placed_on_loopback_healed_and_ended(cluster, data_dir):
    driver, link = cluster
    assert any(line == "placed\n" for line in driver.stdout)
    (slow,) = (ReplicaRecord.model_validate_json(value) for value in link.hvals(replicas_key("slow")))
    assert httpx2.get(f"{slow.http}/readyz").status_code == 200, "placed means that it can answer"
    assert (data_dir / "ray" / "r").exists()
    assert (data_dir / "ray").stat().st_mode & 0o777 == 0o700, "Ray opens its own folder for everybody"
    first, second = wait_until(lambda: len(found := ready(link)) == 2 and found, 90)
    assert httpx2.post(f"{first.http}/v1/echo", json={"text": "a"}).json()["text"] == "a"
    assert {os.getpriority(os.PRIO_PROCESS, replica.pid) for replica in (first, second)} == {NICENESS}
    ours = listening(driver.pid)
    assert ours
    assert ours <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    os.kill(first.pid, signal.SIGKILL)
    (third,) = wait_until(lambda: [r for r in ready(link) if r.id not in {first.id, second.id}], 60)
    assert httpx2.post(f"{third.http}/v1/echo", json={"text": "b"}).json()["text"] == "b"
    driver.terminate()
    assert driver.wait(40) == 0
    wait_until(lambda: not orphan_cleanup.session_members(driver.pid), 10)
    left = {name.decode() for name in link.hkeys(replicas_key("toy"))}
    assert left == {first.id}  # the others withdrew; the killed one could not


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")  # Ray's own use of pydantic
def test_a_replica_is_made_when_its_models_are_loaded(monkeypatch):
    from shared.serving import ray

    class Host:
        service, settled, looks = "toy", True, iter([True, True, False, False, False])
        is_loading = property(lambda self: next(self.looks))

        def missing(self):
            return {"echo": "no weights"}

    monkeypatch.setattr(ray, "_LOAD_POLL_S", 0.0)
    host = Host()
    ray.wait_until_loaded(host, must_load=True)
    host.settled = False
    ray.wait_until_loaded(host, must_load=False)
    with pytest.raises(RuntimeError, match="no weights"):
        ray.wait_until_loaded(host, must_load=True)
    assert not list(host.looks)
