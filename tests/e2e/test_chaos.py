"""kill -9 of a replica, the gateway and Redis: all are started again, and nothing accepted is lost."""

import pathlib
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

pytestmark = [pytest.mark.e2e]

REDIS, REPLICA = ("-server 127.0.0.1",), ("fovea replica", "medical-seg")
FRAME = (pathlib.Path(__file__).parents[2] / "services/medical_seg/models/example.jpg").read_bytes()
RAW = {"content-type": "image/jpeg"}
ASYNC = {**RAW, "prefer": "respond-async"}
CALLERS = 4


def submit(http, count):
    answers = [http.post("/v1/segment", content=FRAME, headers=ASYNC) for _ in range(count)]
    assert {a.status_code for a in answers} == {202}
    return [a.json()["id"] for a in answers]


def settle(product, http, jobs):
    """Final states of the jobs; the gateway may be without its queue for a moment."""
    states = {}

    def ask():
        for job in set(jobs) - set(states):
            answer = http.get(f"/v1/jobs/{job}")
            if answer.status_code == 200 and answer.json()["status"] in {"succeeded", "failed", "cancelled"}:
                states[job] = answer.json()
        return len(states) == len(jobs)

    product.wait_for(ask)
    return [states[job]["status"] for job in jobs]


def kill(product, *words):
    """Kill all processes of these words; return what tells whether others have taken their place."""
    victims = product.wait_for(lambda: product.processes(*words))
    for victim in victims:
        victim.kill()
    gone = {victim.pid for victim in victims}
    return lambda: any(process.pid not in gone for process in product.processes(*words))


@pytest.fixture
def http(product):
    product.wait_for(product.is_ready)
    with httpx2.Client(base_url=product.url, timeout=60) as client:
        yield client
    product.wait_for(product.is_ready)


@pytest.mark.parametrize("words", [REPLICA, REDIS], ids=["replica", "Redis"])
def test_accepted_jobs_survive_the_death_of_a_replica_and_of_redis(product, http, words):
    jobs = submit(http, 12)
    is_replaced = kill(product, *words)
    assert settle(product, http, jobs) == ["succeeded"] * 12
    assert is_replaced()
    assert ("Redis ended (code -9)" in product.log) is (words == REDIS)


def test_pictures_are_still_answered_while_redis_is_away(product, http):
    product.process.send_signal(signal.SIGSTOP)  # or it would start Redis again at once
    try:
        is_replaced = kill(product, *REDIS)
        assert http.post("/v1/segment", content=FRAME, headers=RAW).status_code == 200
        assert not is_replaced()
    finally:
        product.process.send_signal(signal.SIGCONT)
    product.wait_for(is_replaced)


def test_a_killed_gateway_is_started_again(product, http):
    product.wait_for(kill(product, "services.gateway"))
    product.wait_for(product.is_ready)
    assert "gateway ended (signal SIGKILL)" in product.log
    assert http.post("/v1/segment", content=FRAME, headers=RAW).status_code == 200


def test_no_request_is_lost_when_a_replica_is_killed_under_load(product, http):
    stop, codes = threading.Event(), []

    def load():
        with httpx2.Client(base_url=product.url, timeout=120) as client:
            while not stop.is_set():
                codes.append(client.post("/v1/segment", content=FRAME, headers=RAW).status_code)

    def wait_for(answers):
        product.wait_for(lambda: len(codes) >= answers or any(task.done() for task in running))

    with ThreadPoolExecutor(CALLERS) as pool:
        running = [pool.submit(load) for _ in range(CALLERS)]
        try:
            wait_for(CALLERS)
            kill(product, *REPLICA)
            answered = len(codes)
            wait_for(answered + 5 * CALLERS)  # one a caller was under way, the others came after
        finally:
            stop.set()
        for task in running:
            task.result()
    assert len(codes) >= answered + 5 * CALLERS
    assert set(codes) == {200}
