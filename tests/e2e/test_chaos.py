"""kill -9 of a worker, a replica and Redis under load: nothing that was accepted is lost."""

import pathlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from tests.e2e.conftest import wait_ready

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

FRAME = (pathlib.Path(__file__).parents[2] / "services/medical_seg/models/example.jpg").read_bytes()
RAW = {"content-type": "image/jpeg"}
ASYNC = {**RAW, "prefer": "respond-async"}
CALLERS = 4
ANSWERS_S = 180
"""A replica starts again in some 10 s; beside another suite on the same cores it has taken a minute."""


def submit(http, count):
    answers = [http.post("/v1/segment", content=FRAME, headers=ASYNC) for _ in range(count)]
    assert {a.status_code for a in answers} == {202}
    return [a.json()["id"] for a in answers]


def settle(http, jobs, seconds):
    """States of the jobs once all are final; the gateway may be without its queue for a moment."""
    until = time.monotonic() + seconds
    states = {}
    while time.monotonic() < until and len(states) < len(jobs):
        for job in set(jobs) - set(states):
            answer = http.get(f"/v1/jobs/{job}")
            if answer.status_code == 200 and answer.json()["status"] in {"succeeded", "failed", "cancelled"}:
                states[job] = answer.json()
        time.sleep(0.2)
    return states


def kill(product, *words):
    victims = product.processes(*words)
    assert victims, product.log
    for victim in victims:
        victim.kill()


@pytest.fixture
def http(product):
    wait_ready(product)
    with httpx2.Client(base_url=product.url, timeout=60) as client:
        yield client
    wait_ready(product, 60)


def test_jobs_of_a_killed_worker_are_done_by_its_successor(product, http):
    jobs = submit(http, 12)
    kill(product, "shared.serving.worker", "medical-seg")
    states = settle(http, jobs, 60)
    assert [s["status"] for s in states.values()] == ["succeeded"] * 12


def test_accepted_jobs_survive_the_death_of_redis(product, http):
    jobs = submit(http, 12)
    kill(product, "valkey-server") if product.processes("valkey-server") else kill(product, "redis-server")
    states = settle(http, jobs, 60)
    assert [s["status"] for s in states.values()] == ["succeeded"] * 12


def test_pictures_are_still_answered_while_redis_is_away(product, http):
    kill(product, "valkey-server") if product.processes("valkey-server") else kill(product, "redis-server")
    assert http.post("/v1/segment", content=FRAME, headers=RAW).status_code == 200


def test_no_request_is_lost_when_a_replica_is_killed_under_load(product, http):
    stop, codes = threading.Event(), []

    def load():
        with httpx2.Client(base_url=product.url, timeout=120) as client:
            while not stop.is_set():
                codes.append(client.post("/v1/segment", content=FRAME, headers=RAW).status_code)

    def wait_for(answers):
        until = time.monotonic() + ANSWERS_S
        while len(codes) < answers and time.monotonic() < until and not any(task.done() for task in running):
            time.sleep(0.1)

    with ThreadPoolExecutor(CALLERS) as pool:
        running = [pool.submit(load) for _ in range(CALLERS)]
        try:
            wait_for(CALLERS)
            kill(product, "ray::", "medical-seg")
            answered = len(codes)
            wait_for(answered + 5 * CALLERS)  # one a caller was under way, the others came after
        finally:
            stop.set()
        for task in running:
            task.result()
    assert len(codes) >= answered + 5 * CALLERS
    assert set(codes) == {200}
