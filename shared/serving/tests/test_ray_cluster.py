"""Ray places replicas on loopback, replaces one that is killed, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time

import httpx2
import pytest
import redis

from shared.api.replica import LEASE_S, ReplicaRecord, replicas_key
from shared.serving.up import reaper
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
ray.deploy([ray.Placement(service="toy", app=app), ray.Placement(service="two", app=app, max_replicas=2)])
print("placed", flush=True)
over.wait()
ray.stop(folder)
"""


@pytest.fixture
def cluster(redis_url, tmp_path):
    env = environment(FOVEA_REDIS_URL=redis_url, FOVEA_DATA_DIR=str(tmp_path), FOVEA_SHUTDOWN_GRACE_S="1")
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], env=env, start_new_session=True)
    with redis.Redis.from_url(redis_url) as link:
        yield driver, link
    reaper.end_sessions([driver.pid], 5)
    driver.wait()


def ready(link):
    found = [ReplicaRecord.model_validate_json(value) for value in link.hvals(replicas_key("toy"))]
    return [replica for replica in found if replica.ready and time.time() - replica.seen < LEASE_S]


def listening(session):
    inodes = set()
    for pid in reaper.session_members(session):
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


def test_replicas_are_placed_on_loopback_healed_and_ended(cluster):
    driver, link = cluster
    first, second = wait_until(lambda: len(found := ready(link)) == 2 and found, 90)
    assert httpx2.post(f"{first.http}/v1/echo", json={"text": "a"}).json()["text"] == "a"
    ours = listening(driver.pid)
    assert ours
    assert ours <= {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    os.kill(first.pid, signal.SIGKILL)
    (third,) = wait_until(lambda: [r for r in ready(link) if r.id not in {first.id, second.id}], 60)
    assert httpx2.post(f"{third.http}/v1/echo", json={"text": "b"}).json()["text"] == "b"
    driver.terminate()
    assert driver.wait(40) == 0
    wait_until(lambda: not reaper.session_members(driver.pid), 10)
    left = {name.decode() for name in link.hkeys(replicas_key("toy"))}
    assert left == {first.id}  # the others withdrew; the killed one could not


class Context:
    capacity_adjusted_min_replicas = 1
    capacity_adjusted_max_replicas = 4

    def __init__(self, *busy):
        self.aggregated_metrics = {"busy": dict(enumerate(busy))} if busy else {}


@pytest.mark.parametrize(("busy", "replicas"), [((), 1), ((0,), 1), ((8,), 1), ((9,), 2), ((8, 8, 8), 3), ((99,), 4)])
def test_replicas_grow_with_the_requests_in_flight(busy, replicas):
    from shared.serving.ray import scale

    assert scale(Context(*busy)) == (replicas, {})
