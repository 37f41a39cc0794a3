"""The batcher loses nothing, mixes nothing, keeps order, and never runs what nobody waits for."""

import asyncio
import threading
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import telemetry
from shared.errors import Cancelled, DeadlineExceeded, Fault, InvalidOption, NotReady, QueueFull
from shared.registry import CallContext
from shared.serving import batching
from shared.serving.batching import BatchContext, Batcher, BatchOptions
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
        """Double them."""
        self.gate.wait(5)
        self.threads.add(threading.get_ident())
        self.batches.append((key, list(items)))
        time.sleep(self.seconds)
        return [InvalidOption("negative") if item < 0 else item * 2 for item in items]


def batcher(work, **knobs):
    return Batcher(work, BatchOptions(**{"wait": 0.0, **knobs}), service="test", model="doubler")


async def behind_gate(work, made, items, run=CallContext, **how):
    """Submit items while the thread is held at its gate, so that they queue up together."""
    work.gate.clear()
    first = asyncio.create_task(made.submit(0, CallContext()))
    await until(lambda: made.busy and not made._queue)
    tasks = [asyncio.create_task(made.submit(item, run(), **how)) for item in items]
    await asyncio.sleep(0)
    return first, tasks


async def test_single_item_is_answered_off_the_loop_s_thread():
    work = Doubler()
    made = batcher(work)
    assert await made.submit(21, CallContext()) == 42
    assert threading.get_ident() not in work.threads
    await made.close()


async def test_what_gathers_during_a_run_runs_together():
    work = Doubler()
    made = batcher(work, size=4)
    first, tasks = await behind_gate(work, made, range(1, 7))
    work.gate.set()
    assert await asyncio.gather(*tasks) == [2, 4, 6, 8, 10, 12]
    assert [items for _, items in work.batches] == [[0], [1, 2, 3, 4], [5, 6]]
    await first
    await made.close()


async def test_lone_caller_never_waits_for_company():
    made = batcher(Doubler(), wait=3600)
    async with asyncio.timeout(60):
        for item in range(5):
            await made.submit(item, CallContext())
    await made.close()


async def test_callers_that_come_back_are_gathered_again():
    work = Doubler(seconds=0.002)
    made = batcher(work, size=8, wait=0.05)

    async def caller(item):
        for _ in range(20):
            await made.submit(item, CallContext())

    await asyncio.gather(*(caller(item) for item in range(4)))
    sizes = [len(items) for _, items in work.batches]
    assert sum(sizes) == 80
    assert sorted(sizes)[len(sizes) // 2] == 4
    await made.close()


async def test_after_company_has_left_a_lone_caller_waits_no_more(clock):
    clock.govern(batching)
    work = Doubler()
    made = batcher(work, size=4, wait=3600)
    first, tasks = await behind_gate(work, made, range(1, 5))
    work.gate.set()
    await asyncio.gather(first, *tasks)
    await until(lambda: not made.busy)
    clock.advance(3601)
    async with asyncio.timeout(60):
        await made.submit(1, CallContext())
    await made.close()


async def test_error_of_one_item_stays_with_it():
    work = Doubler()
    made = batcher(work)
    first, tasks = await behind_gate(work, made, [1, -1, 3])
    work.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert (answers[0], answers[2]) == (2, 6)
    assert isinstance(answers[1], InvalidOption)
    await first
    await made.close()


async def test_batch_that_fails_as_a_whole_is_run_again_one_by_one():
    def work(_key, items, _run):
        if 13 in items:
            raise ZeroDivisionError("a secret")
        return [item * 2 for item in items]

    gate = Doubler()
    made = batcher(lambda key, items, run: gate.gate.wait(5) and work(key, items, run))
    first, tasks = await behind_gate(gate, made, [1, 13, 3])
    gate.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert (answers[0], answers[2]) == (2, 6)
    assert isinstance(answers[1], Fault)
    assert "secret" not in answers[1].detail
    await first
    await made.close()


async def test_work_that_answers_too_few_is_a_fault_of_ours():
    made = batcher(lambda _key, _items, _run: [])
    with pytest.raises(Fault):
        await made.submit(1, CallContext())
    await made.close()


async def test_full_queue_refuses_and_says_when_to_come_back():
    work = Doubler(seconds=0.05)
    made = batcher(work, size=1, depth=3)
    await made.submit(1, CallContext())
    first, tasks = await behind_gate(work, made, range(3))
    with pytest.raises(QueueFull) as refused:
        await made.submit(9, CallContext())
    assert 0.03 < refused.value.retry_after < 3
    assert "3" in refused.value.detail
    work.gate.set()
    await asyncio.gather(first, *tasks)
    await made.close()


async def test_cancelled_caller_frees_its_place_and_is_never_run():
    work = Doubler()
    made = batcher(work, size=1, depth=2)
    first, tasks = await behind_gate(work, made, [7, 8])
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    again = asyncio.create_task(made.submit(9, CallContext()))
    await asyncio.sleep(0)
    work.gate.set()
    assert await again == 18
    await asyncio.gather(first, tasks[1])
    assert [items for _, items in work.batches] == [[0], [8], [9]]
    await made.close()


async def test_run_that_is_cancelled_in_the_queue_is_never_run():
    work, over = Doubler(), CallContext()
    made = batcher(work)
    first, (task,) = await behind_gate(work, made, [7], run=lambda: over)
    over.cancel()
    work.gate.set()
    with pytest.raises(Cancelled):
        await task
    await first
    assert [items for _, items in work.batches] == [[0]]
    await made.close()


async def test_deadline_passes_in_the_queue_and_during_the_run():
    work = Doubler()
    made = batcher(work, size=1)
    first, (task,) = await behind_gate(work, made, [7], run=lambda: CallContext(deadline=time.monotonic() + 0.03))
    with pytest.raises(DeadlineExceeded):
        await task
    work.gate.set()
    await first
    slow = batcher(Doubler(seconds=0.2))
    with pytest.raises(DeadlineExceeded):
        await slow.submit(1, CallContext(deadline=time.monotonic() + 0.03))
    assert [items for _, items in work.batches] == [[0]]
    await made.close()
    await slow.close(1)


async def test_run_that_is_over_is_refused_at_the_door():
    made, over = batcher(Doubler()), CallContext()
    over.cancel()
    with pytest.raises(Cancelled):
        await made.submit(1, over)
    await made.close()


async def test_cancelled_caller_cancels_the_run_in_progress():
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
    await made.close(1)


async def test_other_keys_wait_their_turn_and_keep_their_order():
    work = Doubler()
    made = batcher(work)
    work.gate.clear()
    first = asyncio.create_task(made.submit(0, CallContext()))
    await until(lambda: made.busy and not made._queue)
    tasks = [asyncio.create_task(made.submit(item, CallContext(), key=item % 2)) for item in (1, 2, 3, 4)]
    await asyncio.sleep(0)
    work.gate.set()
    assert await asyncio.gather(*tasks) == [2, 4, 6, 8]
    assert work.batches[1:] == [(1, [1, 3]), (0, [2, 4])]
    await first
    await made.close()


async def test_item_larger_than_a_batch_runs_alone():
    work = Doubler()
    made = batcher(work, size=4)
    first, tasks = await behind_gate(work, made, [1, 2, 3], rows=3)
    work.gate.set()
    await asyncio.gather(first, *tasks, made.submit(9, CallContext(), rows=100))
    assert all(len(items) == 1 for _, items in work.batches)
    await made.close()


async def test_several_threads_run_side_by_side():
    together = threading.Barrier(3)

    def work(_key, items, _run):
        together.wait(2)
        return items

    made = batcher(work, size=1, threads=3)
    assert await asyncio.gather(*(made.submit(item, CallContext()) for item in range(3))) == [0, 1, 2]
    await made.close()


async def test_close_finishes_what_waits_and_refuses_what_comes():
    work = Doubler(seconds=0.01)
    made = batcher(work, size=1)
    tasks = [asyncio.create_task(made.submit(item, CallContext())) for item in range(4)]
    await asyncio.sleep(0)
    await made.close(2)
    assert await asyncio.gather(*tasks) == [0, 2, 4, 6]
    with pytest.raises(NotReady):
        await made.submit(1, CallContext())


async def test_close_gives_up_on_what_takes_too_long():
    work = Doubler()
    made = batcher(work, size=1)
    first, (waiting,) = await behind_gate(work, made, [1])
    await made.close(0.01)
    with pytest.raises(NotReady):
        await waiting
    work.gate.set()
    await first


async def test_queue_stage_batch_size_and_depth_are_counted():
    made = Batcher(Doubler(), BatchOptions(wait=0.0), service="counted", model="m")
    await made.submit(1, CallContext())
    text = telemetry.metrics_text().decode()
    assert 'fovea_request_queue_time_seconds_count{model="m",service="counted"} 1.0' in text
    assert 'fovea_batch_size_count{model="m",service="counted"} 1.0' in text
    assert 'fovea_queue_depth{model="m",service="counted"} 0.0' in text
    await made.close()


async def test_log_lines_of_the_work_carry_request_service_and_model():
    seen = []
    made = batcher(lambda _key, items, _run: [seen.append(telemetry.context()), *items][1:])
    with telemetry.bind(request_id="r-1"):
        await made.submit(1, CallContext())
    assert (seen[0].request_id, seen[0].service, seen[0].model) == ("r-1", "test", "doubler")
    await made.close()


def test_batch_stops_only_when_all_its_members_have():
    members = [CallContext(deadline=time.monotonic() + 60), CallContext(deadline=time.monotonic() + 90)]
    both = BatchContext(members)
    assert both.deadline == members[1].deadline
    members[0].cancel()
    both.check()
    members[1].cancel()
    with pytest.raises(Cancelled):
        both.check()


def test_batch_without_a_deadline_has_none_and_tells_all_members_its_progress():
    told = []
    members = [
        CallContext(report=lambda *news: told.append(news)),
        CallContext(deadline=1.0, report=lambda *news: told.append(news)),
    ]
    both = BatchContext(members)
    assert both.deadline is None
    both.progress(0.5, "half")
    assert told == [(0.5, "half")] * 2


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
