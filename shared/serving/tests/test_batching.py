"""The batcher loses nothing, mixes nothing, keeps order, and never runs what nobody waits for."""

import asyncio
import re
import threading
import time
from collections import Counter

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
    """Work that doubles numbers, remembers its batches, and can be held back."""

    def __init__(self, *, seconds=0.0):
        self.batches = []
        self.threads = set()
        self.gate = threading.Event()
        self.gate.set()
        self.seconds = seconds

    def __call__(self, key, items, run):
        self.gate.wait(5)
        self.threads.add(threading.get_ident())
        self.batches.append((key, list(items)))
        time.sleep(self.seconds)
        return [InvalidOption("negative") if item < 0 else item * 2 for item in items]


@pytest.fixture
async def batcher():
    """Makes batchers, which are closed at the end."""
    made = []

    def make(work, **knobs):
        made.append(Batcher(work, BatchOptions(**{"wait": 0.0, **knobs}), service="test", model="doubler"))
        return made[-1]

    yield make
    for each in made:
        await each.close(1)


async def hold(work, made, run=None, item=0):
    """Begin a call whose thread is held at the gate of `work`."""
    work.gate.clear()
    first = asyncio.create_task(made.submit(item, run or CallContext()))
    await until(lambda: made.busy and not made._queue)
    return first


async def finish(work, first, *tasks):
    """Open the gate; the outcomes of the tasks after the first."""
    work.gate.set()
    return (await asyncio.gather(first, *tasks, return_exceptions=True))[1:]


async def behind_gate(work, made, items, run=CallContext, **how):
    """Submit items while the thread is held at its gate, so that they queue up together."""
    first = await hold(work, made)
    tasks = [asyncio.create_task(made.submit(item, run(), **how)) for item in items]
    await asyncio.sleep(0)
    return first, tasks


async def test_single_item_is_answered_off_the_loop_s_thread(batcher):
    work = Doubler()
    made = batcher(work)
    assert await made.submit(21, CallContext()) == 42
    assert threading.get_ident() not in work.threads


async def test_what_gathers_during_a_run_runs_together(batcher):
    work = Doubler()
    made = batcher(work, size=4)
    first, tasks = await behind_gate(work, made, range(1, 7))
    assert await finish(work, first, *tasks) == [2, 4, 6, 8, 10, 12]
    assert [items for _, items in work.batches] == [[0], [1, 2, 3, 4], [5, 6]]


async def test_lone_caller_never_waits_for_company(batcher):
    made = batcher(Doubler(), wait=3600)
    async with asyncio.timeout(60):
        for item in range(5):
            await made.submit(item, CallContext())


async def test_callers_that_come_back_are_gathered_again(batcher):
    work = Doubler(seconds=0.002)
    made = batcher(work, size=8, wait=0.05)

    async def caller(item):
        for _ in range(20):
            await made.submit(item, CallContext())

    await asyncio.gather(*(caller(item) for item in range(4)))
    sizes = [len(items) for _, items in work.batches]
    assert sum(sizes) == 80
    assert sorted(sizes)[len(sizes) // 2] == 4


async def test_after_company_has_left_a_lone_caller_waits_no_more(batcher, clock):
    clock.govern(batching)
    work = Doubler()
    made = batcher(work, size=4, wait=3600)
    first, tasks = await behind_gate(work, made, range(1, 5))
    await finish(work, first, *tasks)
    await until(lambda: not made.busy)
    clock.advance(3601)
    async with asyncio.timeout(60):
        await made.submit(1, CallContext())


async def test_error_of_one_item_stays_with_it(batcher):
    work = Doubler()
    made = batcher(work)
    first, tasks = await behind_gate(work, made, [1, -1, 3])
    answers = await finish(work, first, *tasks)
    assert (answers[0], answers[2]) == (2, 6)
    assert isinstance(answers[1], InvalidOption)


async def test_batch_that_fails_as_a_whole_is_run_again_one_by_one(batcher):
    def work(_key, items, _run):
        if 13 in items:
            raise ZeroDivisionError("a secret")
        return [item * 2 for item in items]

    gate = Doubler()
    made = batcher(lambda key, items, run: gate.gate.wait(5) and work(key, items, run))
    first, tasks = await behind_gate(gate, made, [1, 13, 3])
    answers = await finish(gate, first, *tasks)
    assert (answers[0], answers[2]) == (2, 6)
    assert isinstance(answers[1], Fault)
    assert "secret" not in answers[1].detail


async def test_work_that_answers_too_few_is_a_fault_of_ours(batcher):
    made = batcher(lambda _key, _items, _run: [])
    with pytest.raises(Fault):
        await made.submit(1, CallContext())


def job():
    return CallContext(job="j")


async def test_calls_of_jobs_let_all_others_pass(batcher):
    work = Doubler()
    made = batcher(work, size=1)
    first, jobs = await behind_gate(work, made, [1, 2], job)
    others = [asyncio.create_task(made.submit(item, CallContext())) for item in (3, 4)]
    await asyncio.sleep(0)
    jobs.append(asyncio.create_task(made.submit(5, job())))
    await asyncio.sleep(0)
    await finish(work, first, *jobs, *others)
    assert [items for _, items in work.batches] == [[0], [3], [4], [1], [2], [5]]


async def test_calls_of_jobs_that_have_waited_long_let_nobody_pass_any_more(batcher):
    work = Doubler()
    made = batcher(work, size=1)
    first, jobs = await behind_gate(work, made, [1, 2], job)
    made._queue[0].since -= batching._JOB_PATIENCE_S
    other = asyncio.create_task(made.submit(3, CallContext()))
    await asyncio.sleep(0)
    await finish(work, first, *jobs, other)
    assert [items for _, items in work.batches] == [[0], [1], [3], [2]]


async def test_jobs_and_others_have_a_bound_of_their_own(batcher):
    work = Doubler()
    made = batcher(work, size=1, depth=2)
    first, tasks = await behind_gate(work, made, [1, 2], job)
    with pytest.raises(QueueFull, match="2 requests wait"):
        await made.submit(3, job())
    tasks += [asyncio.create_task(made.submit(item, CallContext())) for item in (4, 5)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="2 requests wait"):
        await made.submit(6, CallContext())
    await finish(work, first, *tasks)


async def test_cancelled_caller_frees_its_place_and_is_never_run(batcher):
    work = Doubler()
    made = batcher(work, size=1, depth=2)
    first, tasks = await behind_gate(work, made, [7, 8])
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    again = asyncio.create_task(made.submit(9, CallContext()))
    await asyncio.sleep(0)
    assert await finish(work, first, tasks[1], again) == [16, 18]
    assert [items for _, items in work.batches] == [[0], [8], [9]]


async def test_run_that_is_cancelled_in_the_queue_is_never_run(batcher):
    work, over = Doubler(), CallContext()
    made = batcher(work)
    first, (task,) = await behind_gate(work, made, [7], run=lambda: over)
    over.cancel()
    (outcome,) = await finish(work, first, task)
    assert isinstance(outcome, Cancelled)
    assert [items for _, items in work.batches] == [[0]]


async def test_run_that_is_over_is_refused_at_the_door(batcher):
    made, over = batcher(Doubler()), CallContext()
    over.cancel()
    with pytest.raises(Cancelled):
        await made.submit(1, over)


async def test_cancelled_caller_cancels_the_run_in_progress(batcher):
    noticed = threading.Event()

    def work(_key, items, run):
        while not run.cancelled:
            time.sleep(0.001)
        noticed.set()
        return items

    made = batcher(work)
    task = asyncio.create_task(made.submit(1, CallContext()))
    await until(lambda: made.busy)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await asyncio.to_thread(noticed.wait, 60)


async def test_other_keys_wait_their_turn_and_keep_their_order(batcher):
    work = Doubler()
    made = batcher(work)
    first = await hold(work, made)
    tasks = [asyncio.create_task(made.submit(item, CallContext(), key=item % 2)) for item in (1, 2, 3, 4)]
    await asyncio.sleep(0)
    assert await finish(work, first, *tasks) == [2, 4, 6, 8]
    assert work.batches[1:] == [(1, [1, 3]), (0, [2, 4])]


async def test_item_larger_than_a_batch_runs_alone(batcher):
    work = Doubler()
    made = batcher(work, size=4)
    first, tasks = await behind_gate(work, made, [1, 2, 3], rows=3)
    await finish(work, first, *tasks, made.submit(9, CallContext(), rows=100))
    assert all(len(items) == 1 for _, items in work.batches)


async def test_several_threads_run_side_by_side(batcher):
    together = threading.Barrier(3)

    def work(_key, items, _run):
        together.wait(2)
        return items

    made = batcher(work, size=1, threads=3)
    assert await asyncio.gather(*(made.submit(item, CallContext()) for item in range(3))) == [0, 1, 2]


async def test_close_finishes_what_waits_and_refuses_what_comes(batcher):
    work = Doubler(seconds=0.01)
    made = batcher(work, size=1)
    tasks = [asyncio.create_task(made.submit(item, CallContext())) for item in range(4)]
    await asyncio.sleep(0)
    await made.close(2)
    assert await asyncio.gather(*tasks) == [0, 2, 4, 6]
    with pytest.raises(NotReady):
        await made.submit(1, CallContext())


async def test_queue_stage_batch_size_and_depth_are_counted():
    made = Batcher(Doubler(), BatchOptions(wait=0.0), service="counted", model="m")
    await made.submit(1, CallContext())
    text = telemetry.render_metrics()[0].decode()
    assert 'fovea_request_queue_time_seconds_count{model="m",service="counted"} 1.0' in text
    waited = re.search(r'fovea_request_queue_time_seconds_sum\{model="m",service="counted"\} (\S+)', text)
    assert waited
    assert float(waited[1]) < 5
    assert 'fovea_batch_size_count{model="m",service="counted"} 1.0' in text
    assert 'fovea_queue_depth{model="m",service="counted"} 0.0' in text


async def test_log_lines_of_the_work_carry_request_service_and_model(batcher):
    seen = []
    made = batcher(lambda _key, items, _run: [seen.append(telemetry.context()), *items][1:])
    with telemetry.bind(request_id="r-1"):
        await made.submit(1, CallContext())
    assert (seen[0].request_id, seen[0].service, seen[0].model) == ("r-1", "test", "doubler")


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
    members = [
        CallContext(report=lambda *news: told.append(news)),
        CallContext(deadline=1.0, report=lambda *news: told.append(news)),
    ]
    both = BatchContext(members)
    assert both.deadline is None
    both.progress(0.5, "half")
    assert told == [(0.5, "half")] * 2
    ann, bob = CallContext(tenant="ann"), CallContext(tenant="bob")
    assert BatchContext([ann, CallContext(tenant="ann")]).tenant == "ann"
    assert BatchContext([ann]).tenant == "ann"
    assert BatchContext([ann, bob]).tenant == ""


CALL = st.tuples(
    st.integers(0, 2),  # key
    st.integers(1, 5),  # rows
    st.sampled_from(["answer", "answer", "answer", "fail", "cancel", "expire"]),
    st.floats(0, 0.003),  # pause before it comes
)


@given(calls=st.lists(CALL, max_size=25), size=st.integers(1, 6), wait=st.sampled_from([0.0, 0.001]))
def test_nothing_is_lost_mixed_or_overtaken(calls, size, wait):
    ran = []

    def work(key, items, _run):
        ran.append((key, list(items)))
        time.sleep(0.0005)
        return [InvalidOption(f"{number}") if fate == "fail" else number * 10 for number, fate, _ in items]

    async def one(made, number, key, rows, fate, pause):
        await asyncio.sleep(pause)
        run = CallContext(deadline=time.monotonic() + (0.0005 if fate == "expire" else 30))
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
            assert isinstance(answer, InvalidOption)
            assert answer.detail == f"{number}"
        else:
            assert answer == number * 10 or isinstance(answer, asyncio.CancelledError | Cancelled | DeadlineExceeded)
    times = Counter(number for _, items in ran for number, _, _ in items)
    assert all(count == 1 for count in times.values())
    for key, items in ran:
        assert all(calls[number][0] == key for number, _, _ in items)
        assert len(items) == 1 or sum(rows for _, _, rows in items) <= size


@given(keys=st.lists(st.integers(0, 3), min_size=1, max_size=20), size=st.integers(1, 5))
def test_calls_of_one_key_run_in_the_order_they_came(keys, size):
    ran = []

    def work(key, items, _run):
        ran.extend((key, item) for item in items)
        return items

    async def scenario():
        made = Batcher(work, BatchOptions(size=size, wait=0.0), service="test", model="any")
        await asyncio.gather(*(made.submit(place, CallContext(), key=key) for place, key in enumerate(keys)))
        await made.close(5)

    asyncio.run(scenario())
    for key in set(keys):
        assert [item for k, item in ran if k == key] == [place for place, k in enumerate(keys) if k == key]


async def test_refusals_say_how_many_wait_and_what_to_do(batcher):
    work = Doubler()
    made = batcher(work, size=2, depth=3)
    first, tasks = await behind_gate(work, made, range(3))
    with pytest.raises(QueueFull) as full:
        await made.submit(9, CallContext())
    assert full.value.detail == "3 requests wait for doubler; the limit is 3."
    assert (full.value.hint, full.value.retry_after) == ("Send it again later, or as a job.", 0.1)
    made._mean_seconds = 0.25
    with pytest.raises(QueueFull) as full:
        await made.submit(9, CallContext())
    assert full.value.retry_after == 0.5  # of two batches
    closing = asyncio.create_task(made.close(0.01))
    with pytest.raises(NotReady) as given_up:
        await tasks[0]
    assert given_up.value.detail == "The service is stopping."
    assert (given_up.value.hint, given_up.value.retry_after) == ("Send the request again.", 1)
    work.gate.set()
    await asyncio.gather(first, closing, *tasks, return_exceptions=True)
    with pytest.raises(NotReady) as closed:
        await made.submit(9, CallContext())
    assert closed.value.detail == "The model is being unloaded."
    assert (closed.value.hint, closed.value.retry_after) == ("Send the request again.", 1)


async def test_a_deadline_that_passes_says_what_to_do_and_stops_the_alarm_otherwise(batcher):
    work = Doubler()
    made = batcher(work)
    first, (task,) = await behind_gate(work, made, [7], run=lambda: CallContext(deadline=time.monotonic() + 0.01))
    with pytest.raises(DeadlineExceeded) as late:
        await task
    assert "FOVEA_REQUEST_TIMEOUT_S" in late.value.detail
    assert "respond-async" in late.value.hint
    assert not made._queue
    await finish(work, first)
    assert [items for _, items in work.batches] == [[0]]
    with pytest.raises(DeadlineExceeded):  # during the run
        await batcher(Doubler(seconds=0.2)).submit(1, CallContext(deadline=time.monotonic() + 0.03))
    assert await made.submit(4, CallContext(deadline=time.monotonic() + 30)) == 8
    assert not [alarm for alarm in asyncio.get_running_loop()._scheduled if not alarm.cancelled()]


async def test_close_cancels_what_runs_once_it_gives_up(batcher):
    work, runs = Doubler(), [CallContext() for _ in range(2)]
    made = batcher(work)
    task = await hold(work, made, runs[0])
    assert made.busy == 1
    await made.close(0.01)
    assert [run.cancelled for run in runs] == [True, False]
    await finish(work, task)


class Clock:
    """Clocks that stand still but for what the work moves."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self):
        self.wall = self.processor = 100.0

    def perf_counter(self):
        return self.wall

    def process_time(self):
        return self.processor


async def test_members_share_the_processor_time_and_batches_are_averaged(batcher, monkeypatch):
    clock, work = Clock(), Doubler()
    monkeypatch.setattr("shared.serving.batching.time", clock)

    def take(key, items, run):
        clock.wall += 2.0
        clock.processor += 3.0
        return work(key, items, run)

    made, runs = batcher(take), [CallContext() for _ in range(2)]
    first, tasks = await behind_gate(work, made, [1, 2], run=iter(runs).__next__)
    await finish(work, first, *tasks)
    assert [run.usage["cpu_seconds"] for run in runs] == [1.5, 1.5]
    assert made._mean_seconds == pytest.approx(0.6 + 0.3 * 1.4)
    assert (made._last_count, made._last_end) == (2, 104.0)


async def test_calls_that_still_wait_are_expected_back(batcher):
    work = Doubler()
    made = batcher(work, size=2)
    first, tasks = await behind_gate(work, made, range(1, 6))
    seen = []
    made._sizes = type("Sizes", (), {"observe": lambda _, size: seen.append((size, made._last_count))})()
    await finish(work, first, *tasks)
    assert seen == [(2, 6), (2, 5), (1, 3)]


@pytest.mark.parametrize(
    ("last_count", "ended_ago", "waits"),
    [(3, 0.0, True), (3, 9.9, True), (3, 10.1, False), (1, 0.0, False), (2, 0.0, False)],
)
async def test_company_is_waited_for_only_if_it_left_just_now(batcher, monkeypatch, last_count, ended_ago, waits):
    clock, slept = Clock(), []
    made = batcher(Doubler(), size=8, wait=10.0)
    await made.close()
    for thread in made._threads:
        thread.join()
    monkeypatch.setattr("shared.serving.batching.time", clock)

    def wait(seconds):
        slept.append((seconds, made._wake_at))
        clock.wall += 4.0

    monkeypatch.setattr(made._ready, "wait", wait)
    made._closed = False
    made._queue.extend([None, None])
    made._last_count, made._last_end = last_count, clock.wall - ended_ago
    made._wait_for_returning()
    assert slept == ([(10.0, 3), (6.0, 3), (2.0, 3)] if waits else [])
    assert made._wake_at == 1
    made._queue.clear()


async def test_the_thread_wakes_for_the_last_of_those_that_it_expects(batcher):
    made = batcher(Doubler(), size=8, wait=30.0)
    made._last_count, made._last_end = 3, time.perf_counter()
    tasks = [asyncio.create_task(made.submit(item, CallContext())) for item in range(2)]
    await until(lambda: made._wake_at == 3)
    assert made.busy == 2
    assert await made.submit(2, CallContext()) == 4
    assert await asyncio.gather(*tasks) == [0, 2]


async def test_a_batch_runs_under_all_request_ids_and_a_fault_names_the_model(batcher):
    seen = []
    gate = Doubler()

    def work(_key, items, _run):
        gate.gate.wait(5)
        seen.append(telemetry.context().request_id)
        if 13 in items:
            raise ZeroDivisionError
        return items

    made = batcher(work)
    with telemetry.bind(request_id="r-0"):
        first = await hold(gate, made)
    tasks = []
    for number in (1, 13):
        with telemetry.bind(request_id=f"r-{number}"):
            tasks.append(asyncio.create_task(made.submit(number, CallContext())))
            await asyncio.sleep(0)
    answers = await finish(gate, first, *tasks)
    assert seen == ["r-0", "r-1,r-13", "r-1", "r-13"]
    assert answers[0] == 1
    assert answers[1].detail.startswith("The model doubler")


async def test_threads_have_the_model_s_name_and_do_not_keep_the_process_alive(batcher):
    made = batcher(Doubler(), threads=2)
    assert [(thread.name, thread.daemon) for thread in made._threads] == [("doubler 0", True), ("doubler 1", True)]
    await made.close(1)
    assert not any(thread.is_alive() for thread in made._threads)


async def test_members_of_a_batch_have_spans_that_link_the_others(batcher, recorded_spans):  # noqa: F811
    work, parent_of_what_runs = Doubler(), []

    def run(key, items, context):
        parent_of_what_runs.append(telemetry.context().traceparent)
        return work(key, items, context)

    made = batcher(run)
    parents = [telemetry.span("member", parent="") for _ in range(2)]
    first = await hold(work, made)
    tasks = []
    for parent in parents:
        with telemetry.bind(traceparent=parent.traceparent):
            tasks.append(asyncio.create_task(made.submit(1, CallContext(), rows=3)))
            await asyncio.sleep(0)
    await finish(work, first, *tasks)
    await made.close(1)
    spans = recorded_spans.named("batch")
    traces = [parent.traceparent.split("-")[1] for parent in parents]
    assert [one.split("-")[1] for one in parent_of_what_runs[-1].split(",")] == traces
    assert [f"{span.context.trace_id:032x}" for span in spans] == traces
    for span, other in zip(spans, reversed(traces), strict=True):
        assert dict(span.attributes) == {"fovea.batch.size": 2, "fovea.batch.rows": 6}
        assert [f"{link.context.trace_id:032x}" for link in span.links] == [other]


async def test_a_lone_call_runs_under_its_own_context_and_a_batch_that_stops_stops_for_all(batcher, recorded_spans):  # noqa: F811
    gate, seen, runs = Doubler(), [], [CallContext() for _ in range(2)]

    def work(_key, items, run):
        gate.gate.wait(5)
        seen.append(run)
        if len(items) > 1:
            raise Cancelled("All have gone.")
        return items

    made, alone = batcher(work), CallContext()
    first = await hold(gate, made, alone)
    parent = telemetry.span("member", parent="")
    with telemetry.bind(traceparent=parent.traceparent):
        tasks = [asyncio.create_task(made.submit(item, run)) for item, run in enumerate(runs)]
        await asyncio.sleep(0)
    answers = await finish(gate, first, *tasks)
    assert [answer.detail for answer in answers] == ["All have gone."] * 2
    assert first.result() == 0
    assert seen[0] is alone
    assert [type(run) for run in seen[1:]] == [BatchContext]
    await made.close(1)
    failed = [(span.status.status_code.name, span.attributes["error.type"]) for span in recorded_spans.named("batch")]
    assert failed == [("ERROR", Cancelled("").code)] * 2
