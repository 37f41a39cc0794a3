"""Helpers that tests of all areas share: waiting, and servers in threads."""

import threading

import httpx2
import pytest

from tests.harness.serving import serve_in_thread
from tests.harness.waiting import until, wait_until


def test_waiting_in_vain_names_what_was_waited_for():
    with pytest.raises(AssertionError, match="the answer did not come about"):
        wait_until(lambda: False, seconds=0.02, what="the answer")


async def test_waiting_lets_other_tasks_run():
    seen = threading.Event()
    timer = threading.Timer(0.02, seen.set)
    timer.start()
    assert await until(seen.is_set) is True
    with pytest.raises(AssertionError, match=r"in 0\.02 s"):
        await until(lambda: 0, seconds=0.02)


async def answer(scope, receive, send):
    await send({"type": "http.response.start", "status": 207, "headers": []})
    await send({"type": "http.response.body", "body": b"here"})


def test_an_app_is_served_until_the_block_ends():
    asked = []
    with serve_in_thread(answer, lambda app: asked.append(app) or len(asked) > 2, lifespan="off") as url:
        found = httpx2.get(url)
    assert (found.status_code, found.text, asked) == (207, "here", [answer] * 3)
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(url)


async def refuse(scope, receive, send):
    raise RuntimeError


def test_an_app_that_dies_at_its_start_is_an_error_at_once():
    with pytest.raises(AssertionError, match="died at its start"), serve_in_thread(refuse, lifespan="on"):
        pytest.fail("the server was said to run")
