"""The host loads its models side by side, says which it has and why not, and runs their calls off the loop."""

import asyncio
import math
import re
import threading
import time
import weakref

import numpy as np
import pytest
import torch

import shared.registry.servable
import shared.serving.host
from fovea.errors import Cancelled, DeadlineExceeded, InvalidOption, NotFound, NotReady, QueueFull
from shared import telemetry
from shared.registry import CallContext, LoadContext
from shared.serving.host import Host
from shared.serving.http import system_routes
from shared.serving.tests import toys
from shared.serving.tests.toys import TOYS, Echo, Eye, Text
from shared.settings import Settings
from tests.harness.waiting import until


@pytest.fixture
async def start():
    """Starts hosts, which are stopped at the end; keyword arguments are settings."""
    started = []

    async def make(servables, **settings):
        started.append(Host("toy", servables, Settings(**settings)))
        await started[-1].start()
        return started[-1]

    yield make
    for host in started:
        await host.stop()


@pytest.fixture
async def host(start):
    return await start(TOYS, max_batch_delay_ms=0)


def named(kind, name, **facts):
    return type(name, (kind,), {"card": kind.card.model_copy(update={"name": name, **facts})})


def feeds(rows=1, value=0.0):
    return {"x": np.full((rows, 3), value, np.float32)}


@pytest.mark.parametrize("on_demand", [False, True])
async def test_failing_model_stays_listed_with_its_reason_and_the_others_serve(start, monkeypatch, on_demand):
    monkeypatch.setattr(toys.Broken, "on_demand", on_demand)
    host = await start({"toy/broken": toys.Broken, "toy/echo": Echo}, preload="toy/echo" if on_demand else "all")
    if on_demand:
        with pytest.raises(NotReady, match="not available"):
            await host.predict("toy/broken", Text(text="x"), CallContext())
    told = f"Loading toy/broken ({toys.__name__}) failed (RuntimeError). The log of the service says why."
    assert (host.ready, host.missing()) == (False, {"toy/broken": told})
    entry = next(entry for entry in host.entries() if entry.id == "toy/broken")
    assert (entry.ready, entry.state) == (False, "failed")
    with pytest.raises(NotReady, match="not available"):
        host.servable("toy/broken")
    assert (await host.predict("toy/echo", Text(text="a"), CallContext())).text == "a"


async def test_model_whose_own_example_fails_is_not_ready_and_is_closed(start, monkeypatch):
    closed, kind = [], named(Echo, "f", example={"text": "bad"})
    monkeypatch.setattr(kind, "close", lambda self: closed.append(type(self)))
    host = await start({"f": kind})
    assert host.missing() == {"f": "The text is bad. Send another."}
    assert closed == [kind]
    other = named(Echo, "g")
    monkeypatch.setattr(other, "predict", lambda _self, batch, _run: ["plain text"] * len(batch))
    assert "failed (TypeError)" in (await start({"g": other})).missing()["g"]


async def test_default_is_the_configured_model_then_real_weights_then_the_first_that_did_not_fail(start):
    bare, real = named(Echo, "bare", weights=None), named(Echo, "real")
    assert Host("toy", {"bare": bare, "real": real}, Settings()).resolve(None, "echo") == "real"
    assert Host("toy", {"bare": bare, "real": real}, Settings(llm_model="bare")).resolve(None, "echo") == "bare"
    assert Host("toy", {"b": named(Eye, "b"), "a": named(Eye, "a")}, Settings()).resolve(None, "segment") == "b"
    bare.__module__ = "services.toy"  # the core's own come before those of plug-ins
    assert Host("toy", {"bare": bare, "real": real}, Settings()).resolve(None, "echo") == "bare"
    host = await start({"toy/broken": toys.Broken, "plain": named(Echo, "plain", weights=None)})
    assert host.resolve(None, "echo") == "plain"


async def test_card_holds_tensors_limits_and_schema_and_the_example_warms_every_model_but_jobs(host):
    card = host.card("toy/echo")
    assert card["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    assert (card["limits"]["max_batch"], card["limits"]["max_images"]) == (8, host.settings.max_images)
    assert card["schema"]["properties"]["times"]["maximum"] == 5
    assert host.card("toy/eye")["media_types"] == ["application/json", "image/png"]
    assert (host.card("toy/eye")["inputs"], host.servable("toy/echo").seen) == ([], ["hello"])
    assert host.servable("toy/long").seen == []
    for asked, told in ((("nope",), "toy/echo"), ((None, "detect"), "no model for detect")):
        with pytest.raises(NotFound, match=told):
            host.servable(*asked)


async def test_requests_and_tensors_that_come_together_run_together_and_equal_their_singles(host):
    requests = [Text(text=f"t{n}", times=n % 3 + 1) for n in range(6)]
    singles = [(await host.predict("toy/echo", request, CallContext())).text for request in requests]
    answers = await asyncio.gather(*(host.predict("toy/echo", request, CallContext()) for request in requests))
    assert ([answer.text for answer in answers], max(answer.together for answer in answers) > 1) == (singles, True)
    calls = (
        host.infer("toy/echo", feeds(rows, value), CallContext()) for rows, value in ((1, 1), (2, 2), (3, 3), (1, 0))
    )
    answers = await asyncio.gather(*calls)
    assert [answer["y"].shape for answer in answers] == [(1, 3), (2, 3), (3, 3), (1, 3)]
    assert [answer["y"][0, 0] for answer in answers] == [2, 3, 4, 1]
    assert (max(host.servable("toy/echo").engine.batches) > 3, host.tensors("toy/eye")) == (True, ((), ()))
    with pytest.raises(InvalidOption) as refused:
        await host.infer("toy/eye", feeds(), CallContext())
    assert refused.value.hint == "Use POST /v1/segment."


async def test_one_of_many_requests_of_a_call_waits_while_others_fill_the_queue(start):
    host = await start({"toy/echo": Echo}, max_queue_size=1, max_batch_size=1, max_batch_delay_ms=0)
    calls = [Text(text=f"{n}", sleep=0.05) for n in range(6)]
    tries = (host.predict("toy/echo", call, CallContext()) for call in calls)
    assert QueueFull in {type(answer) for answer in await asyncio.gather(*tries, return_exceptions=True)}
    answers = await asyncio.gather(*(host.predict_when_free("toy/echo", call, CallContext()) for call in calls))
    assert [answer.text for answer in answers] == [str(n) for n in range(6)]


async def test_job_runs_alone_and_tells_its_progress_and_stream_hands_out_events_as_they_come(host):
    told = []
    run = CallContext(report=lambda *news: told.append(news))
    await asyncio.gather(*(host.predict("toy/long", Text(text=f"{n}", sleep=0.02), run) for n in range(3)))
    assert (told[:2], len(told), len(host.servable("toy/long").threads)) == ([(0.0, "step 0"), (0.2, "step 1")], 15, 1)
    words = []
    async for event in host.stream("toy/story", Text(text="a b c"), CallContext()):
        words.append(event.text)
        assert host.busy == 1
    assert (words, host.busy) == (["a", "b", "c"], 0)


async def test_what_a_stream_tells_the_metrics_carries_its_service_and_model(start):
    class Telling(toys.Story):
        card = toys.card("telling", "plan")

        async def stream(self, request, run):
            begun = telemetry.context()
            yield request.model_copy(update={"text": f"{begun.service} {begun.model}"})
            yield request.model_copy(update={"text": telemetry.context().model})

    host = await start({"telling": Telling})
    events = host.stream("telling", Text(text="a"), CallContext())
    first = await asyncio.ensure_future(anext(events))  # the first reader may be another task than the others
    assert [first.text, *[event.text async for event in events]] == ["toy telling", "telling"]


@pytest.mark.parametrize(("facts", "gap_s", "told"), [
    ({"is_stream": True}, 1, None), ({"is_stream": True}, 121, "nothing new .* FOVEA_REQUEST_TIMEOUT_S"),
    ({"is_stream": True, "lasts_s": 7_000}, 1, "FOVEA_STREAM_TIMEOUT_S"), ({}, 1, "FOVEA_REQUEST_TIMEOUT_S"),
])  # fmt: skip
async def test_deadline_of_a_stream_counts_from_each_piece(start, clock, facts, gap_s, told):
    class Slow(toys.Story):
        card = toys.card("slow", "plan")

        async def stream(self, request, run):
            for _ in range(8_000):
                clock.advance(gap_s if request.text == "a" else 0)
                run.check()
                yield toys.Said(text="b", together=1)

    host = await start({"slow": Slow})
    clock.govern(shared.registry.servable, shared.serving.host)
    run, begun = CallContext(deadline=clock.monotonic() + 120), clock.monotonic()
    run.pause_s, run.ends_at = 120, begun + facts.get("lasts_s", math.inf)
    run.is_stream = facts.get("is_stream", False)
    count, failed = 0, None
    try:
        async for _ in host.stream("slow", Text(text="a"), run):
            count += 1
    except DeadlineExceeded as error:
        failed = f"{error.detail} {error.hint}"
    assert (failed is None) == (told is None) == (count == 8_000)
    assert told is None or re.search(told, failed)


async def test_tokens_that_show_nothing_yet_keep_a_stream_alive(host, monkeypatch):
    async def stream(_, run):
        for _ in range(4):
            await asyncio.sleep(0.1)
            run.extend()
        yield toys.Said(text="late", together=1)
        await asyncio.sleep(60)

    monkeypatch.setattr(host.servable("toy/story"), "stream", stream)
    run = CallContext(deadline=time.monotonic() + 0.25)
    run.is_stream, run.pause_s = True, 0.25
    events = host.stream("toy/story", Text(text="a"), run)
    assert (await anext(events)).text == "late"
    with pytest.raises(DeadlineExceeded, match="nothing new"):
        await anext(events)


async def test_more_streams_than_may_be_open_are_refused(start):
    host = await start({"toy/story": toys.Story}, max_queue_size=1)
    events = host.stream("toy/story", Text(text="…"), CallContext())
    await anext(events)
    with pytest.raises(QueueFull):
        await anext(host.stream("toy/story", Text(text="a"), CallContext()))
    await events.aclose()


async def test_models_are_loaded_and_a_streaming_one_answers_whole_requests_side_by_side(start):
    together = threading.Barrier(2)

    class Chat(toys.Story):
        card = toys.card("chat", "plan")

        @classmethod
        def load(cls, place: LoadContext):
            together.wait(5)
            return cls()

        def predict(self, batch, run):
            together.wait(2)
            return super().predict(batch, run)

    host = await start({"chat": Chat, "two": named(Chat, "two")})
    assert host.ready
    await asyncio.gather(*(host.predict("chat", Text(text="a"), CallContext()) for _ in range(2)))


async def test_stop_cancels_what_does_not_end(start):
    host = await start(TOYS, shutdown_grace_s=0.05)
    answer = asyncio.create_task(host.predict("toy/echo", Text(text="x", sleep=2), CallContext()))
    events = host.stream("toy/story", Text(text="…"), CallContext())
    await anext(events)
    await until(lambda: host.busy == 2)
    await host.stop()
    with pytest.raises(Cancelled):
        await answer
    with pytest.raises(Cancelled):
        [event async for event in events]


async def test_tensors_of_a_model_that_can_t_batch_run_alone(start, monkeypatch):
    fixed = tuple(spec.model_copy(update={"shape": (1, 3)}) for spec in toys.PlusOne.outputs)
    monkeypatch.setattr(toys.PlusOne, "outputs", fixed)
    host = await start({"alone": named(Echo, "alone")})
    await asyncio.gather(*(host.infer("alone", feeds(), CallContext()) for _ in range(5)))
    assert host.servable("alone").engine.batches == [1] * 5


class Lazy(Echo):
    """Its first request loads it; counts how often that happens."""

    on_demand = True
    loads = 0

    @classmethod
    def load(cls, place: LoadContext):
        cls.loads += 1
        time.sleep(0.1)
        return cls()


async def test_models_wait_for_their_first_request_which_all_that_come_meanwhile_share(start):
    kinds = {name: named(Lazy, name) for name in ("one", "two")} | {"eager": named(Echo, "eager")}
    host = await start(kinds, preload="default")
    assert [host.slot(name).state for name in ("one", "two", "eager")] == ["ready", "on_demand", "ready"]
    assert (host.ready, {entry.ready for entry in host.entries()}) == (True, {True})
    host.check_ready("two")
    with pytest.raises(NotFound, match="has version"):
        host.check_ready("two", "7")
    with pytest.raises(NotReady, match="loaded by its first request", check=lambda e: e.retry_after == 2):
        host.servable("two")  # a route that does not wait for it
    asking = asyncio.gather(*(host.predict("two", Text(text="x"), CallContext()) for _ in range(3)))
    await asyncio.sleep(0.05)
    assert host.settled, "other models go on being served"
    said = await asking
    assert ({answer.text for answer in said}, kinds["one"].loads, kinds["two"].loads) == ({"x"}, 1, 1)


async def test_a_card_does_not_wait_long_for_its_model_whose_loading_goes_on(start_client, monkeypatch):
    monkeypatch.setattr(system_routes, "CARD_WAIT_S", 0.01)
    client = await start_client({name: named(Lazy, name) for name in ("one", "two")}, preload="default")
    card = (await client.get("/v1/models/two")).json()
    assert (card["id"], "text" in card["schema"]["properties"]) == ("two", True)
    assert client.app.state.host.slot("two").servable is None
    await until(lambda: client.app.state.host.slot("two").servable is not None)


async def test_beyond_the_budget_the_longest_unused_model_is_unloaded_and_comes_back(start):
    kinds = {name: named(Lazy, name) for name in ("first", "one", "two")}
    host = await start(kinds, preload="first", model_memory_bytes=1)
    for name, other in (("one", "two"), ("two", "one"), ("one", "two")):
        await host.infer(name, feeds(), CallContext())
        assert (host.slot(name).state, host.slot(other).state) == ("ready", "on_demand")
    assert (host.slot("first").state, kinds["one"].loads) == ("ready", 2)


async def test_an_unloaded_model_leaves_no_memory_on_a_gpu_and_comes_back(start, monkeypatch):
    class Circle(Echo):
        """Holds itself, as an engine with recorded steps does."""

        card = toys.card("circle")

        def __init__(self):
            super().__init__()
            self.itself = self

        def close(self):
            closed.append(True)

    host = await start({"circle": Circle})
    held, emptied, closed = weakref.ref(host.servable("circle")), [], []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(held()))
    await host.unload("circle")
    assert (emptied, closed) == ([None], [True])
    assert host.ready, "it is as wanted"
    with pytest.raises(NotReady, match="unloaded"):
        await host.predict("circle", Text(), CallContext())
    await host.load("circle")
    assert (await host.predict("circle", Text(), CallContext())).text == "hello"
