"""Ray places replicas on loopback, replaces one that is killed, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import pytest
import redis

from fovea.api.replica import HEARTBEAT_TTL_S, ReplicaRecord, replicas_key
from shared.serving.up import orphan_cleanup
from shared.settings import environment
from tests.harness.waiting import wait_until

# Ray's own use of pydantic, which it has to mend.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")

DRIVER = """
import signal, threading
from shared.serving import ray
from shared.settings import settings

over = threading.Event()
folder = ray.start(settings())
signal.signal(signal.SIGTERM, lambda *_: over.set())
app = "shared.serving.tests.toy_app:app"
ray.application({"service": "toy", "app": app, "max_replicas": 2, "max_per_node": 1})  # a Serve config is a mapping
slow = ray.Placement(service="slow", app="shared.serving.tests.slow_app:app")
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
    inodes = set()
    for pid in orphan_cleanup.session_members(session):
        folder = f"/proc/{pid}/fd"
        for name in os.listdir(folder):  # noqa: PTH208
            try:
                inodes.add(os.readlink(f"{folder}/{name}"))  # noqa: PTH115
            except FileNotFoundError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/net/{table}") as rows:  # noqa: PTH123
            for row in list(rows)[1:]:
                cells = row.split()
                if cells[3] == "0A" and f"socket:[{cells[9]}]" in inodes:
                    found.add(cells[1].split(":")[0])
    return found


def test_replicas_are_placed_on_loopback_healed_and_ended(cluster, data_dir):
    driver, link = cluster
    assert any(line == "placed\n" for line in driver.stdout)
    (slow,) = (ReplicaRecord.model_validate_json(value) for value in link.hvals(replicas_key("slow")))
    asked = httpx2.get(f"{slow.http}/readyz")
    assert asked.status_code == 200, "placed means that it can answer"
    assert (data_dir / "ray" / "r").exists()
    assert (data_dir / "ray").stat().st_mode & 0o777 == 0o700, "Ray opens its own folder for everybody"
    first, second = wait_until(lambda: len(found := ready(link)) == 2 and found, 90)
    assert httpx2.post(f"{first.http}/v1/echo", json={"text": "a"}).json()["text"] == "a"
    assert {os.getpriority(os.PRIO_PROCESS, replica.pid) for replica in (first, second)} == {NICENESS}
    ours = listening(driver.pid)
    assert ours
    assert ours <= {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    os.kill(first.pid, signal.SIGKILL)
    (third,) = wait_until(lambda: [r for r in ready(link) if r.id not in {first.id, second.id}], 60)
    assert httpx2.post(f"{third.http}/v1/echo", json={"text": "b"}).json()["text"] == "b"
    driver.terminate()
    assert driver.wait(40) == 0
    wait_until(lambda: not orphan_cleanup.session_members(driver.pid), 10)
    left = {name.decode() for name in link.hkeys(replicas_key("toy"))}
    assert left == {first.id}  # the others withdrew; the killed one could not


class Loading:
    """A host that has loaded after so many looks."""

    service = "toy"

    def __init__(self, looks, settled):
        self.looks, self.settled = looks, settled

    @property
    def is_loading(self):
        self.looks -= 1
        return self.looks >= 0

    def missing(self):
        return {"echo": "no weights"}


def test_a_replica_is_made_when_its_models_are_loaded(monkeypatch):
    from shared.serving import ray

    monkeypatch.setattr(ray, "_LOAD_POLL_S", 0.0)
    host = Loading(3, settled=True)
    ray.wait_until_loaded(host, must_load=True)
    assert host.looks == -1
    ray.wait_until_loaded(Loading(0, settled=False), must_load=False)
    with pytest.raises(RuntimeError, match="no weights"):
        ray.wait_until_loaded(Loading(0, settled=False), must_load=True)
