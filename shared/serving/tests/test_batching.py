"""The batcher loses nothing, mixes nothing, keeps order, and never runs what nobody waits for."""

import asyncio
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import Cancelled, DeadlineExceeded, Fault, InvalidOption, NotReady, QueueFull
from shared import telemetry
from shared.registry import CallContext
from shared.serving import batching
from shared.serving.batch_context import BatchContext
from shared.serving.batching import Batcher, BatchOptions
from shared.tests.recorded_spans import recorded_spans  # noqa: F401  # a fixture
from tests.harness.waiting import until


class Doubler:
    """A batcher of work that doubles numbers, unless it is given other work; calls can be held back at a gate."""

    def __init__(self, work=None, *, seconds=0.0, **knobs):
        self.work, self.seconds = work or self.double, seconds
        self.batches, self.threads, self.tasks = [], set(), []
        self.gate = threading.Event()
        self.gate.set()
        self.made = Batcher(self, BatchOptions(**{"wait": 0.0, **knobs}), service="test", model="doubler")

    def __call__(self, key, items, run):
        self.gate.wait(5)
        self.threads.add(threading.get_ident())
        self.batches.append((key, list(items)))
        time.sleep(self.seconds)
        return self.work(key, items, run)

    @staticmethod
    def double(_key, items, _run):
        return [InvalidOption("negative") if item < 0 else item * 2 for item in items]

    @property
    def ran(self):
        return [items for _, items in self.batches]

    def call(self, item=1, run=None, **how):
        return self.made.submit(item, run or CallContext(), **how)

    async def hold(self, *items, first=None, **how):
        """Hold a call at the gate, and let items queue up behind it."""
        self.gate.clear()
        self.tasks = [asyncio.create_task(self.call(0, first))]
        await until(lambda: self.made.busy and not self.made._queue)
        await self.add(*items, **how)

    async def add(self, *items, run=CallContext, **how):
        self.tasks += [asyncio.create_task(self.call(item, run(), **how)) for item in items]
        await asyncio.sleep(0)

    async def finish(self):
        """Open the gate; the outcomes of the calls behind the first."""
        self.gate.set()
        return (await asyncio.gather(*self.tasks, return_exceptions=True))[1:]


@pytest.fixture
async def doubler():
    """Makes doublers, which are closed at the end."""
    made = []

    def make(work=None, **how):
        made.append(Doubler(work, **how))
        return made[-1]

    yield make
    for each in made:
        await each.made.close(1)


def job():
    return CallContext(job="j")


async def test_lone_caller_is_answered_off_the_loop_s_thread_and_never_waits_for_company(doubler):
    work = doubler()
    assert (await work.call(21), threading.get_ident() in work.threads) == (42, False)
    work = doubler(wait=3600)
    async with asyncio.timeout(60):
        for item in range(5):
            await work.call(item)


async def test_what_gathers_during_a_run_runs_together_and_an_item_larger_than_a_batch_alone(doubler):
    for size, items, rows, batches in (
        (4, range(1, 7), [1] * 6, [[1, 2, 3, 4], [5, 6]]),
        (4, [1, 2, 3], [3] * 3, [[1], [2], [3]]),
        (4, [9], [100], [[9]]),
        (3, [1, 2, 3], [2, 2, 1], [[1], [2, 3]]),  # the last one would fit next to the first
    ):
        work = doubler(size=size)
        await work.hold()
        for item, each in zip(items, rows, strict=True):
            await work.add(item, rows=each)
        assert (await work.finish(), work.ran) == ([2 * item for item in items], [[0], *batches])


async def test_callers_that_come_back_are_gathered_again(doubler):
    work = doubler(seconds=0.002, size=8, wait=0.05)

    async def caller(item):
        for _ in range(20):
            await work.call(item)

    await asyncio.gather(*(caller(item) for item in range(4)))
    sizes = sorted(map(len, work.ran))
    assert (sum(sizes), sizes[len(sizes) // 2]) == (80, 4)


async def test_after_company_has_left_a_lone_caller_waits_no_more(doubler, clock):
    clock.govern(batching)
    work = doubler(size=4, wait=3600)
    await work.hold(*range(1, 5))
    await work.finish()
    await until(lambda: not work.made.busy)
    clock.advance(3601)
    async with asyncio.timeout(60):
        await work.call()


async def test_error_of_one_item_stays_with_it_and_a_batch_that_fails_is_run_again_one_by_one(doubler):
    work = doubler()
    await work.hold(1, -1, 3)
    first, second, third = await work.finish()
    assert (first, type(second), third) == (2, InvalidOption, 6)

    def fail(key, items, run):
        if 13 in items:
            raise ZeroDivisionError("a secret")
        return Doubler.double(key, items, run)

    work = doubler(fail)
    await work.hold(1, 13, 3)
    first, second, third = await work.finish()
    assert (first, type(second), third, "secret" in second.detail) == (2, Fault, 6, False)
    with pytest.raises(Fault):
        await doubler(lambda _key, _items, _run: []).call()


@pytest.mark.parametrize(("waited_s", "order"), [(0, [3, 4, 1, 2, 5]), (batching._JOB_PATIENCE_S, [1, 3, 4, 2, 5])])
async def test_calls_of_jobs_let_all_others_pass_until_they_have_waited_long(doubler, waited_s, order):
    work = doubler(size=1)
    await work.hold(1, 2, run=job)
    work.made._queue[0].since -= waited_s
    await work.add(3, 4)
    await work.add(5, run=job)
    await work.finish()
    assert work.ran == [[0], *([item] for item in order)]


async def test_jobs_and_others_have_a_bound_of_their_own_and_a_cancelled_caller_frees_its_place(doubler):
    work = doubler(size=1, depth=2)
    await work.hold()
    for run in (job, CallContext):
        await work.add(1, 2, run=run)
        with pytest.raises(QueueFull, match="2 requests wait"):
            await work.call(3, run())
    assert await work.finish() == [2, 4] * 2
    work = doubler(size=1, depth=2)
    await work.hold(7, 8)
    work.tasks[1].cancel()
    await asyncio.gather(work.tasks.pop(1), return_exceptions=True)
    await work.add(9)
    assert (await work.finish(), work.ran) == ([16, 18], [[0], [8], [9]])


async def test_run_that_is_cancelled_in_the_queue_is_never_run_and_one_that_is_over_refused_at_the_door(doubler):
    work, run = doubler(), CallContext()
    await work.hold(7, run=lambda: run)
    run.cancel()
    assert [type(outcome) for outcome in await work.finish()] == [Cancelled]
    with pytest.raises(Cancelled):
        await work.call(1, run)
    assert work.ran == [[0]]


async def test_cancelled_caller_cancels_the_run_in_progress(doubler):
    noticed = threading.Event()

    def wait(_key, items, run):
        while not run.cancelled:
            time.sleep(0.001)
        noticed.set()
        return items

    work = doubler(wait)
    task = asyncio.create_task(work.call())
    await until(lambda: work.made.busy)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await asyncio.to_thread(noticed.wait, 60)

    def leave(key, items, run):
        if 7 in items:
            loop.call_soon_threadsafe(work.tasks[1].cancel)
        return work.double(key, items, run)

    loop, work = asyncio.get_running_loop(), doubler(leave)
    await work.hold(7, 8)
    left, stayed = await asyncio.wait_for(work.finish(), 20)
    assert (type(left), stayed) == (asyncio.CancelledError, 16), "the others of its batch are answered"


async def test_other_keys_wait_their_turn_and_keep_their_order(doubler):
    work = doubler()
    await work.hold()
    for item in (1, 2, 3, 4):
        await work.add(item, key=item % 2)
    assert (await work.finish(), work.batches[1:]) == ([2, 4, 6, 8], [(1, [1, 3]), (0, [2, 4])])


async def test_threads_run_side_by_side_have_the_model_s_name_and_do_not_keep_the_process_alive(doubler):
    together = threading.Barrier(2)

    def meet(_key, items, _run):
        together.wait(2)
        return items

    work = doubler(meet, size=1, threads=2)
    assert await asyncio.gather(*map(work.call, range(2))) == [0, 1]
    threads = work.made._threads
    assert [(thread.name, thread.daemon) for thread in threads] == [("doubler 0", True), ("doubler 1", True)]
    await work.made.close(1)
    assert not any(thread.is_alive() for thread in threads)


async def test_close_finishes_what_waits_and_refuses_what_comes_and_cancels_what_runs_once_it_gives_up(doubler):
    work = doubler(seconds=0.01, size=1)
    await work.add(*range(4))
    await work.made.close(2)
    assert await asyncio.gather(*work.tasks) == [0, 2, 4, 6]
    with pytest.raises(NotReady):
        await work.call()
    work, run = doubler(), CallContext()
    await work.hold(first=run)
    assert work.made.busy == 1
    await work.made.close(0.01)
    assert run.cancelled
    await work.finish()


async def test_queue_stage_batch_size_and_depth_are_counted():
    made = Batcher(Doubler.double, BatchOptions(wait=0.0), service="counted", model="m")
    await made.submit(1, CallContext())
    text = telemetry.render_metrics()[0].decode()
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if 'model="m",service="counted"' in line)
    labels = '{model="m",service="counted"}'
    assert float(samples[f"fovea_request_queue_time_seconds_sum{labels}"]) < 5
    counted = ("fovea_request_queue_time_seconds_count", "fovea_batch_size_count", "fovea_queue_depth")
    assert [samples[name + labels] for name in counted] == ["1.0", "1.0", "0.0"]


def test_batch_stops_when_all_its_members_have_and_has_their_last_deadline_progress_and_tenant():
    members = [CallContext(deadline=time.monotonic() + 60), CallContext(deadline=time.monotonic() + 90)]
    both = BatchContext(members)
    assert both.deadline == members[1].deadline
    members[0].cancel()
    both.check()
    members[1].cancel()
    with pytest.raises(Cancelled):
        both.check()
    told = []
    members = [CallContext(deadline=at, report=lambda *news: told.append(news)) for at in (None, 1.0)]
    both = BatchContext(members)
    assert both.deadline is None
    both.progress(0.5, "half")
    assert told == [(0.5, "half")] * 2
    for tenants, tenant in ((("ann", "ann"), "ann"), (("ann",), "ann"), (("ann", "bob"), "")):
        assert BatchContext([CallContext(tenant=one) for one in tenants]).tenant == tenant


FATES = st.sampled_from(["answer", "answer", "answer", "fail", "cancel", "expire"])
CALL = st.tuples(st.integers(0, 2), st.integers(1, 5), FATES, st.floats(0, 0.003))
"""Key, rows, fate, and the pause before it comes."""


@given(calls=st.lists(CALL, max_size=25), size=st.integers(1, 6), wait=st.sampled_from([0.0, 0.001]))
def test_nothing_is_lost_mixed_or_overtaken(calls, size, wait):
    came, ran = [], []

    def work(key, items, _run):
        ran.append((key, list(items)))
        time.sleep(0.0005)
        return [InvalidOption(f"{number}") if fate == "fail" else number * 10 for number, fate, _ in items]

    async def one(made, number, key, rows, fate, pause):
        await asyncio.sleep(pause)
        run = CallContext(deadline=time.monotonic() + (0.0005 if fate == "expire" else 30))
        came.append(number)
        task = asyncio.create_task(made.submit((number, fate, rows), run, key=key, rows=rows))
        if fate == "cancel":
            await asyncio.sleep(0.0003)
            task.cancel()
        return await asyncio.gather(task, return_exceptions=True)

    async def scenario():
        made = Batcher(work, BatchOptions(size=size, wait=wait, depth=100), service="test", model="any")
        answers = await asyncio.gather(*(one(made, number, *call) for number, call in enumerate(calls)))
        await made.close(5)
        return [answer for (answer,) in answers]

    answers = asyncio.run(scenario())
    for number, (answer, (_, _, fate, _)) in enumerate(zip(answers, calls, strict=True)):
        if fate == "answer":
            assert answer == number * 10
        elif fate == "fail":
            assert (isinstance(answer, InvalidOption), answer.detail) == (True, f"{number}")
        else:
            assert answer == number * 10 or isinstance(answer, asyncio.CancelledError | Cancelled | DeadlineExceeded)
    for key, items in ran:
        assert all(calls[number][0] == key for number, _, _ in items)
        assert len(items) == 1 or sum(rows for _, _, rows in items) <= size
    order = [number for _, items in ran for number, _, _ in items]
    for key in range(3):
        ours = [number for number in order if calls[number][0] == key]
        assert ours == [number for number in came if number in ours], "each once, and none overtakes another"


async def test_refusals_say_how_many_wait_and_what_to_do(doubler):
    work = doubler(size=2, depth=3)
    await work.hold(*range(3))
    for mean_s, retry_s in ((0.0, 0.1), (0.25, 0.5)):  # of two batches
        work.made._mean_seconds = mean_s
        with pytest.raises(QueueFull) as full:
            await work.call(9)
        assert full.value.detail == "3 requests wait for doubler; the limit is 3."
        assert (full.value.hint, full.value.retry_after) == ("Send it again later, or as a job.", retry_s)
    closing = asyncio.create_task(work.made.close(0.01))
    with pytest.raises(NotReady) as given_up:
        await work.tasks[1]
    work.gate.set()
    await asyncio.gather(closing, *work.tasks, return_exceptions=True)
    with pytest.raises(NotReady) as closed:
        await work.call(9)
    for refused, told in ((given_up, "The service is stopping."), (closed, "The model is being unloaded.")):
        assert (refused.value.detail, refused.value.hint) == (told, "Send the request again.")
        assert refused.value.retry_after == 1


async def test_a_deadline_that_passes_says_what_to_do_and_stops_the_alarm_otherwise(doubler):
    work = doubler()
    await work.hold(7, run=lambda: CallContext(deadline=time.monotonic() + 0.01))
    with pytest.raises(DeadlineExceeded) as late:
        await work.tasks[1]
    assert ("FOVEA_REQUEST_TIMEOUT_S" in late.value.detail, "respond-async" in late.value.hint) == (True, True)
    assert not work.made._queue
    await work.finish()
    assert work.ran == [[0]]
    with pytest.raises(DeadlineExceeded):  # during the run
        await doubler(seconds=0.2).call(1, CallContext(deadline=time.monotonic() + 0.03))
    assert await work.call(4, CallContext(deadline=time.monotonic() + 30)) == 8
    assert not [alarm for alarm in asyncio.get_running_loop()._scheduled if not alarm.cancelled()]


async def test_members_share_the_processor_time_and_batches_are_averaged(doubler, clock):
    clock.govern(batching)
    spent, begun = [], clock.perf_counter()
    clock.process_time = lambda: 3.0 * len(spent)

    def take(key, items, run):
        clock.advance(2.0)
        spent.append(items)
        return Doubler.double(key, items, run)

    work, runs = doubler(take), [CallContext() for _ in range(2)]
    await work.hold(1, 2, run=iter(runs).__next__)
    await work.finish()
    assert [run.usage["cpu_seconds"] for run in runs] == [1.5, 1.5]
    assert work.made._mean_seconds == pytest.approx(0.6 + 0.3 * 1.4)
    assert (work.made._last_count, work.made._last_end) == (2, begun + 4.0)


async def test_calls_that_still_wait_are_expected_back(doubler):
    work = doubler(size=2)
    await work.hold(*range(1, 6))
    seen = []
    work.made._sizes = type("Sizes", (), {"observe": lambda _, size: seen.append((size, work.made._last_count))})()
    await work.finish()
    assert seen == [(2, 6), (2, 5), (1, 3)]


@pytest.mark.parametrize(("last_count", "ended_ago", "waits"), [
    (3, 0.0, True), (3, 9.9, True), (3, 10.1, False), (1, 0.0, False), (2, 0.0, False),
])  # fmt: skip
async def test_company_is_waited_for_only_if_it_left_just_now(
    doubler, monkeypatch, clock, last_count, ended_ago, waits
):
    slept, made = [], doubler(size=8, wait=10.0).made
    await made.close()
    for thread in made._threads:
        thread.join()
    clock.govern(batching)

    def wait(seconds):
        slept.append((seconds, made._wake_at))
        clock.advance(4.0)

    monkeypatch.setattr(made._ready, "wait", wait)
    made._closed = False
    made._queue.extend([None, None])
    made._last_count, made._last_end = last_count, clock.perf_counter() - ended_ago
    made._wait_for_returning()
    assert (slept, made._wake_at) == ([(10.0, 3), (6.0, 3), (2.0, 3)] if waits else [], 1)
    made._queue.clear()


async def test_the_thread_wakes_for_the_last_of_those_that_it_expects(doubler):
    work = doubler(size=8, wait=30.0)
    work.made._last_count, work.made._last_end = 3, time.perf_counter()
    await work.add(0, 1)
    await until(lambda: work.made._wake_at == 3)
    assert (work.made.busy, await work.call(2), await asyncio.gather(*work.tasks)) == (2, 4, [0, 2])
    work.made._last_count, work.made._last_end = 3, time.perf_counter()
    await work.add(4)
    await until(lambda: work.made._wake_at == 3)
    await work.made.close(5)
    assert await work.tasks[-1] == 8, "who closes does not wait for company"


async def test_log_lines_carry_service_model_and_all_request_ids_of_a_batch_and_a_fault_names_the_model(doubler):
    seen = []

    def fail(_key, items, _run):
        seen.append(telemetry.context())
        if 13 in items:
            raise ZeroDivisionError
        return items

    work = doubler(fail)
    with telemetry.bind(request_id="r-0"):
        await work.hold()
    for number in (1, 13):
        with telemetry.bind(request_id=f"r-{number}"):
            await work.add(number)
    answer, fault = await work.finish()
    assert [context.request_id for context in seen] == ["r-0", "r-1,r-13", "r-1", "r-13"]
    assert {(context.service, context.model) for context in seen} == {("test", "doubler")}
    assert (answer, fault.detail.startswith("The model doubler")) == (1, True)


async def test_members_of_a_batch_have_spans_that_link_the_others(doubler, recorded_spans):  # noqa: F811
    parent_of_what_runs = []

    def note(key, items, context):
        parent_of_what_runs.append(telemetry.context().traceparent)
        return Doubler.double(key, items, context)

    work, parents = doubler(note), [telemetry.span("member", parent="") for _ in range(2)]
    await work.hold()
    for parent in parents:
        with telemetry.bind(traceparent=parent.traceparent):
            await work.add(1, rows=3)
    await work.finish()
    await work.made.close(1)
    spans, traces = recorded_spans.named("batch"), [parent.traceparent.split("-")[1] for parent in parents]
    assert [one.split("-")[1] for one in parent_of_what_runs[-1].split(",")] == traces
    assert [f"{span.context.trace_id:032x}" for span in spans] == traces
    for span, other in zip(spans, reversed(traces), strict=True):
        assert dict(span.attributes) == {"fovea.batch.size": 2, "fovea.batch.rows": 6}
        assert [f"{link.context.trace_id:032x}" for link in span.links] == [other]


async def test_a_lone_call_runs_under_its_own_context_and_a_batch_that_stops_stops_for_all(doubler, recorded_spans):  # noqa: F811
    seen, alone = [], CallContext()

    def stop(_key, items, run):
        seen.append(run)
        if len(items) > 1:
            raise Cancelled("All have gone.")
        return items

    work = doubler(stop)
    await work.hold(first=alone)
    with telemetry.bind(traceparent=telemetry.span("member", parent="").traceparent):
        await work.add(0, 1)
    assert [answer.detail for answer in await work.finish()] == ["All have gone."] * 2
    assert (work.tasks[0].result(), seen[0] is alone, [type(run) for run in seen[1:]]) == (0, True, [BatchContext])
    await work.made.close(1)
    failed = [(span.status.status_code.name, span.attributes["error.type"]) for span in recorded_spans.named("batch")]
    assert failed == [("ERROR", Cancelled("").code)] * 2
