"""The scheduler's decisions, step by step, on a backend that only counts tokens; and its queue."""

import threading
from types import SimpleNamespace

import pytest
import torch

import shared.registry.servable
import shared.retry_after
from fovea.errors import Cancelled, Fault, InvalidOption, NotReady, QueueFull, TooLarge
from services.llm_longctx.engine import GenerationRequest, Sampling
from services.llm_longctx.engine.quality.background_tasks import BackgroundTasks
from services.llm_longctx.engine.requests.request import to_safe_error
from services.llm_longctx.engine.requests.waiting_queue import WaitingQueue
from services.llm_longctx.engine.scheduler import Scheduler, observations
from services.llm_longctx.kv_cache import PoolExhausted
from services.llm_longctx.tests.conftest import Ear
from services.llm_longctx.tests.hooks import Listeners
from shared.registry import CallContext
from shared.telemetry import configure_logs, device_loss
from tests.harness.waiting import wait_until as until


class TokenCounter:
    """A backend whose sequences hold one unit of memory per token; `events` are its calls."""

    vocab = 5

    def __init__(self, room=100, chunk=4):
        self.room, self.chunk = room, chunk
        self.background_tasks = BackgroundTasks()
        self.events, self.held, self.stubborn, self.failing = [], {}, set(), {}

    def name(self, sequence):
        letter = "abcdefgh"[sequence.request.prompt_ids[0]]
        return letter.upper() if sequence.answer else letter

    def fits(self, sequence, running):
        assert all(each.is_prefilled for each in running)
        return sum(self.held.values()) + len(sequence.request.prompt_ids) <= self.room

    def allocate(self, sequence, parent=None):
        """Begin empty, or with all that the parent read."""
        self._call("allocate", sequence)
        sequence.state = SimpleNamespace(close=lambda: None)
        sequence.num_computed = 0 if parent is None else parent.num_computed
        self.held[self.name(sequence)] = 0 if parent is None else 1

    def prefill_chunk(self, sequence, limit):
        """Read four tokens, whatever the limit; only the last one's logits lead to token 4."""
        self._call("prefill", sequence)
        assert limit == 8
        size = min(self.chunk, len(sequence.request.prompt_ids) - sequence.num_computed)
        sequence.num_computed += size
        self.held[self.name(sequence)] += size
        if sum(self.held.values()) > self.room:
            raise PoolExhausted
        return torch.cat((torch.zeros(size - 1, 5), torch.arange(5.0)[None]))

    def can_append(self, running):
        return sum(self.held.values()) + len(running) <= self.room

    def decode_batch(self, batch):
        self.events.append(f"decode {''.join(map(self.name, batch))}")
        if "decode" in self.failing:
            raise self.failing.pop("decode")
        for sequence in batch:
            self.held[self.name(sequence)] += 1
        return [self.failing.pop(f"decode {self.name(each)}", torch.arange(5.0)) for each in batch]

    def is_preemptible(self, sequence):
        return self.name(sequence) not in self.stubborn

    def complete(self, sequence, running):
        self._call("complete", sequence)

    def release(self, sequence):
        sequence.free()
        self.held.pop(self.name(sequence), None)
        self.events.append(f"release {self.name(sequence)}")

    def reclaim(self):
        self.events.append("reclaim")

    def _call(self, what, sequence):
        self.events.append(f"{what} {self.name(sequence)}")
        if error := self.failing.pop(self.events[-1], None):
            raise error


@pytest.fixture
def backend():
    return TokenCounter()


@pytest.fixture
def scheduler(backend):
    return Scheduler(backend, max_waiting=3, prefill_tokens=8)


def ask(letter, length=3, new=2, n=1, **facts):
    ears = [Ear() for _ in range(n)]
    ids = ["abcdefgh".index(letter)] + [1] * (length - 1)
    return GenerationRequest(ids, [Sampling()] * n, new, hooks=Listeners(*ears), **facts), *ears


def step(scheduler, times=1):
    scheduler.backend.events.clear()
    for _ in range(times):
        scheduler.step()
    return scheduler.backend.events


def start(scheduler, *asked):
    """A step for each request that is added."""
    for request, *_ in asked:
        scheduler.add_request(request)
        step(scheduler)


def test_a_step_decodes_all_and_reads_a_budget_of_one_prompt(scheduler, backend):
    for request, _ in (ask("a"), ask("b", length=20), ask("c")):
        scheduler.add_request(request)
    assert scheduler.in_flight == 3
    assert step(scheduler) == ["allocate a", "prefill a"]
    assert [backend.name(each) for each in scheduler.running] == ["a"]
    assert step(scheduler) == ["decode a", "complete a", "release a", "allocate b", "prefill b", "prefill b"]
    assert scheduler.prefilling.num_computed == 8
    assert scheduler.in_flight == 2
    assert step(scheduler) == ["prefill b", "prefill b"]
    assert step(scheduler) == ["prefill b"]
    assert [backend.name(each) for each in scheduler.running] == ["b"]
    assert step(scheduler) == ["decode b", "complete b", "release b", "allocate c", "prefill c"]
    assert step(scheduler, 2) == ["decode c", "complete c", "release c"]
    assert scheduler.in_flight == 0


@pytest.mark.parametrize(("is_stream", "tokens"), [(True, 8_000), (False, 120)])
def test_a_long_stream_on_a_slow_machine_is_whole(scheduler, backend, clock, is_stream, tokens):
    clock.govern(shared.registry.servable)
    backend.room = 10_000
    request, ear = ask("a", new=8_000, run=CallContext(deadline=clock.monotonic() + 120))
    request.run.is_stream, request.run.pause_s = is_stream, 120
    scheduler.add_request(request)
    while scheduler.in_flight:
        scheduler.step()
        clock.advance(1)
    assert len(ear.ids) - tokens in {0, 1}
    assert (ear.reason == "length") is is_stream


def test_siblings_begin_with_the_prompt_that_was_read_once(scheduler, backend):
    request, one, two = ask("a", n=2, new=3)
    scheduler.add_request(request)
    assert scheduler.in_flight == 1
    assert step(scheduler) == ["allocate a", "prefill a", "allocate A"]
    assert backend.held == {"a": 3, "A": 1}
    assert [backend.name(each) for each in scheduler.running] == ["a", "A"]
    assert step(scheduler, 2)[:1] == ["decode aA"]
    assert one.ids == two.ids == [4, 4, 4]
    assert (one.ends, two.ends) == ([("length", 3)], [("length", 3)])


def test_a_sibling_without_room_is_read_later(scheduler, backend):
    request, one, two = ask("a", n=2, new=3)
    backend.failing["allocate A"] = PoolExhausted()
    scheduler.add_request(request)
    assert step(scheduler) == ["allocate a", "prefill a", "allocate A", "release A"]
    assert (scheduler.in_flight, request.stats.preempted) == (2, 1)
    step(scheduler, 9)
    assert one.ids == two.ids == [4, 4, 4]


def test_the_youngest_that_may_lose_its_memory_does(scheduler, backend):
    asked = [ask(letter, new=9) for letter in "abc"]
    start(scheduler, *asked)
    backend.stubborn, backend.room = {"c"}, sum(backend.held.values())
    assert step(scheduler) == ["release b", "decode ac"]
    assert [request.stats.preempted for request, _ in asked] == [0, 1, 0]
    assert [backend.name(each) for each in scheduler.waiting] == ["b"]
    backend.stubborn = {"a", "c"}  # where nobody may, the youngest must
    backend.room = sum(backend.held.values()) - 1
    assert step(scheduler) == ["release c", "decode a"]
    backend.room = 100
    step(scheduler, 20)
    assert [ear.ids for _, ear in asked] == [[4] * 9] * 3


@pytest.mark.parametrize(("requests", "lost"), [
    ([{"letter": "a", "n": 2}], "A"), ([{"letter": "a", "priority": -1}, {"letter": "b"}], "a"),
    ([{"letter": "a", "run": CallContext(job="j")}, {"letter": "b"}], "a"),
    ([{"letter": "a"}, {"letter": "b", "priority": 1, "run": CallContext(job="j")}], "a"),
])  # fmt: skip
def test_the_last_answer_of_a_request_batches_and_jobs_lose_their_memory_first(scheduler, backend, requests, lost):
    start(scheduler, *(ask(**facts, new=9) for facts in requests))
    backend.room = sum(backend.held.values())
    assert step(scheduler)[0] == f"release {lost}"


def test_a_prompt_in_hand_gives_way_first_and_is_read_again(scheduler, backend):
    running, prompt = ask("a", new=9), ask("b", length=20)
    for request, _ in (running, prompt):
        scheduler.add_request(request)
    step(scheduler, 2)
    assert scheduler.prefilling.num_computed == 8
    backend.room = sum(backend.held.values())
    assert step(scheduler) == ["release b", "decode a"]
    assert (scheduler.prefilling, prompt[0].stats.preempted) == (None, 0)
    assert [backend.name(each) for each in scheduler.waiting] == ["b"]
    backend.room = 100
    assert step(scheduler) == ["decode a", "allocate b", "prefill b", "prefill b"]


NO_ROOM = pytest.mark.parametrize("error", [PoolExhausted, torch.OutOfMemoryError])
"""Pages ran out, or a GPU's other memory."""


@NO_ROOM
@pytest.mark.parametrize("fails", ["allocate a", "prefill a"])
def test_a_prompt_alone_is_tried_once_more_with_all_memory_and_then_refused(scheduler, backend, fails, error):
    request, ear = ask("a")
    scheduler.add_request(request)
    backend.failing[fails] = error()
    assert step(scheduler)[-2:] == ["release a", "reclaim"]
    assert scheduler.in_flight == 1
    backend.failing[fails] = error()
    assert step(scheduler)[-1] == "release a"
    assert isinstance(ear.reason, TooLarge)
    assert ear.reason.detail == "The request needs more memory for keys and values than this model has."
    assert scheduler.in_flight == 0


def test_a_prompt_beside_others_may_fail_for_want_of_room_more_than_once(scheduler, backend):
    start(scheduler, ask("a", new=9))
    request, ear = ask("b")
    scheduler.add_request(request)
    for _ in range(2):
        backend.failing["prefill b"] = PoolExhausted()
        assert step(scheduler) == ["decode a", "allocate b", "prefill b", "release b"]
    step(scheduler, 3)
    assert ear.ends == [("length", 2)]


def test_the_last_that_runs_is_refused_where_it_has_no_room(scheduler, backend):
    request, ear = ask("a", new=9)
    start(scheduler, (request,))
    backend.room = 3
    assert step(scheduler) == ["release a"]
    assert isinstance(ear.reason, TooLarge)
    assert not scheduler.in_flight


@NO_ROOM
def test_a_batch_that_runs_out_of_room_is_read_again(scheduler, backend, error):
    asked = [ask(letter, new=3) for letter in "abc"]
    start(scheduler, *asked[:2])
    scheduler.add_request(asked[2][0])
    backend.failing["decode"] = error()
    events = [*step(scheduler)]
    assert events[:3] == ["decode ab", "release a", "release b"]
    assert [request.stats.preempted for request, _ in asked] == [1, 1, 0]
    again = [event for event in (*events, *step(scheduler, 9)) if event.startswith("allocate")]
    assert again == ["allocate a", "allocate b", "allocate c"], "before those who came later"
    assert [ear.ids for _, ear in asked] == [[4, 4, 4]] * 3
    alone, ear = ask("d", new=3)
    start(scheduler, (alone,))
    backend.failing["decode"] = error()
    step(scheduler, 9)
    assert ear.ids == [4, 4, 4], "alone, but for the first time"


@pytest.mark.parametrize(("most", "reasons"), [(2, ["length"] * 3), (0, [TooLarge] * 3)])
def test_as_many_do_not_run_out_of_room_for_ever(scheduler, backend, monkeypatch, most, reasons):
    decode = backend.decode_batch

    def run_out(batch):
        if len(batch) > most:
            raise PoolExhausted
        return decode(batch)

    monkeypatch.setattr(backend, "decode_batch", run_out)
    asked = [ask(letter, new=9) for letter in "abc"]
    for request, _ in asked:
        scheduler.add_request(request)
    step(scheduler, 40)
    assert [ear.reason if most else type(ear.reason) for _, ear in asked] == reasons
    monkeypatch.undo()
    for letter in "def":
        scheduler.add_request(ask(letter, new=9)[0])
    assert "decode def" in step(scheduler, 9), "until one ends"


def test_one_that_fails_fails_alone(scheduler, backend):
    asked = [ask(letter, new=4) for letter in "abc"]
    start(scheduler, *asked)
    backend.failing["decode b"] = InvalidOption("no")
    assert step(scheduler) == ["decode abc", "complete a", "release a", "release b"]
    backend.failing["complete c"] = RuntimeError("a secret")
    step(scheduler, 2)
    assert asked[0][1].reason == "length"
    assert [type(ear.reason) for _, ear in asked[1:]] == [InvalidOption, Fault]


@pytest.mark.parametrize(("error", "told"), [(ZeroDivisionError(), Fault), (InvalidOption("no"), InvalidOption)])
@pytest.mark.parametrize("fails", ["allocate a", "prefill a"])
def test_a_prompt_that_fails_ends_with_its_siblings_and_the_next_is_served(scheduler, backend, fails, error, told):
    (request, *ears), (other, ear) = ask("a", n=2), ask("b")
    backend.failing[fails] = error
    for one in (request, other):
        scheduler.add_request(one)
    assert step(scheduler)[-2:] == ["release a", "release A"]
    assert [type(each.reason) for each in ears] == [told, told]
    step(scheduler, 2)
    assert ear.ends == [("length", 2)]


def test_the_prompt_is_scored_chunk_by_chunk_and_the_first_token_observed_once(scheduler, monkeypatch):
    observed, note = [], lambda sequence: observed.append(sequence.output_ids[:])
    monkeypatch.setattr(observations, "observe_first_token", note)
    request, ear = ask("a", length=11, score_prompt=True, top_logprobs=0)
    scheduler.add_request(request)
    step(scheduler, 3)
    assert [token.id for token in ear.prompted] == [1] * 10
    assert ear.prompted[0].logprob == pytest.approx(-torch.tensor(5.0).log().item())
    assert observed == [[4]]


def test_what_is_dropped_or_cancelled_ends_before_the_step_decodes(scheduler, backend):
    (a, dropped), (b, cancelled), (c, _) = (ask(letter, length=20, new=9, run=CallContext()) for letter in "abc")
    for request in (a, b):
        scheduler.add_request(request)
    step(scheduler, 5)
    scheduler.add_request(c)
    scheduler.abort(a)
    b.run.cancel()
    assert step(scheduler) == ["release b", "release a", "allocate c", "prefill c", "prefill c"]
    assert [type(ear.reason) for ear in (dropped, cancelled)] == [Cancelled, Cancelled]
    assert dropped.reason.detail == "The request was dropped."
    assert scheduler.prefilling.request is c
    scheduler.abort(c)
    assert step(scheduler) == ["release c"]
    assert (scheduler.prefilling, scheduler.in_flight) == (None, 0)


def test_idle_work_runs_only_while_nobody_is_served(scheduler):
    done = []

    def work():
        for piece in range(3):
            done.append(piece)
            yield

    scheduler.run_when_idle(work())
    scheduler.add_request(ask("a")[0])
    scheduler.step()
    assert done == []
    step(scheduler, 2)
    assert len(done) >= 1
    scheduler.close()
    assert len(scheduler.backend.background_tasks) == 0
    with pytest.raises(NotReady):
        scheduler.run_when_idle(work())


def test_close_ends_what_is_in_flight_and_gives_memory_back(scheduler, backend):
    asked = [ask("a", new=9), ask("b", length=20), ask("c")]
    for request, _ in asked:
        scheduler.add_request(request)
    step(scheduler, 2)
    backend.events.clear()
    scheduler.close()
    assert backend.events == ["release c", "release b", "release a", "reclaim"]
    assert [ear.reason.detail for _, ear in asked] == ["The model was taken out of service."] * 3
    assert all(isinstance(ear.reason, Cancelled) for _, ear in asked)
    with pytest.raises(NotReady):
        scheduler.add_request(ask("d")[0])


@pytest.mark.parametrize(("error", "told"), [(ZeroDivisionError(), Fault), (InvalidOption("no"), InvalidOption)])
def test_the_thread_goes_on_after_a_step_that_failed(scheduler, backend, monkeypatch, error, told):
    def fail(_):
        raise error

    request, ear = ask("a")
    monkeypatch.setattr(backend, "can_append", fail)
    scheduler.start()
    assert (scheduler._thread.name, scheduler._thread.daemon) == ("engine", True)
    scheduler.add_request(request)
    until(lambda: ear.ends)
    assert isinstance(ear.reason, told)
    monkeypatch.undo()
    other, ear = ask("b")
    scheduler.add_request(other)
    until(lambda: ear.ends)
    assert ear.ends == [("length", 2)]
    done = []
    scheduler.run_when_idle(done.append(piece) for piece in "a")
    until(lambda: done)
    scheduler.close()
    assert not scheduler._thread.is_alive()


def test_threads_of_torch_are_set_on_the_engine_s_thread(backend, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", lambda count: seen.append((count, threading.current_thread().name)))
    for threads in (0, 3):
        scheduler = Scheduler(backend, threads=threads)
        scheduler.start()
        scheduler.close()
    assert seen == [(3, "engine")]
    assert (scheduler.waiting.max_waiting, scheduler.prefill_tokens) == (64, 512)


def test_admission_is_reported_and_observed(scheduler, monkeypatch):
    notes, observed = [], []
    monkeypatch.setattr(observations.telemetry, "observe_queue_time", observed.append)
    request, _ = ask("a", run=CallContext(report=lambda share, note: notes.append((share, note))))
    scheduler.add_request(request)
    (sequence,) = scheduler.waiting
    queued_at = sequence.since
    step(scheduler)
    assert notes == [(0.0, "1 in the queue"), (0.0, "being read")]
    assert observed[0] > 0
    assert sequence.since > queued_at + observed[0] > queued_at


def test_a_failure_of_ours_says_where_to_look_and_no_more():
    known = InvalidOption("no")
    assert to_safe_error(known) is known
    configure_logs()
    unknown = to_safe_error(ValueError("a prompt: CUDA error: misaligned address"))
    assert isinstance(unknown, Fault)
    assert device_loss.LOSSES == []
    to_safe_error(RuntimeError("Triton Error [CUDA]: misaligned address"))
    assert device_loss.LOSSES.pop() == "Triton Error [CUDA]: misaligned"
    assert unknown.detail == "The model failed on this request."
    assert unknown.hint == "The log of the service says why."


def line(rank, notes=None):
    told = [] if notes is None else notes
    request = SimpleNamespace(run=SimpleNamespace(progress=lambda *news: told.append(news)))
    return SimpleNamespace(rank=rank, request=request)


def test_the_queue_is_by_rank_and_tells_places():
    queue, notes = WaitingQueue(3), []
    late, early, first = line((0, 2), notes), line((0, 1)), line((-1, 3))
    for each in (late, early, first):
        queue.add(each)
    assert list(queue) == [first, early, late]
    assert notes == [(0.0, "1 in the queue"), (0.0, "2 in the queue"), (0.0, "3 in the queue")]
    with pytest.raises(QueueFull) as full:
        queue.add(line((0, 4)))
    assert full.value.detail == "3 requests wait for this model, and no more may."
    assert (full.value.hint, full.value.retry_after) == ("Try again later.", 1)
    queue.put_back(line((0, 0)))
    assert queue.pop_if(lambda each: each is not first) is None
    assert queue.pop_if(lambda each: each is first) is first
    assert notes[-1] == (0.0, "3 in the queue")
    for each in (early, line((0, 9))):
        queue.discard(each)
    assert [each.rank for each in queue] == [(0, 0), (0, 2)]
    assert notes[-1] == (0.0, "2 in the queue")
    assert WaitingQueue(3).pop_if(lambda _: True) is None


def test_who_is_sent_away_is_told_how_long_places_were_held_lately(clock):
    clock.govern(shared.retry_after)
    queue, lines = WaitingQueue(2), [line((0, rank)) for rank in range(4)]
    for each in lines[:2]:
        queue.add(each)
    clock.advance(40)
    assert queue.pop_if(lambda _: True) is lines[0]
    queue.add(lines[2])
    queue.discard(lines[1])
    queue.add(lines[3])
    with pytest.raises(QueueFull) as full:
        queue.add(line((0, 9)))
    assert full.value.retry_after == 20, "two places, each for 40 s"


@pytest.mark.parametrize(("how", "is_open"), [("add", True), ("wake", True), ("close", False)])
def test_whoever_waits_for_work_is_woken_and_a_closed_queue_takes_nothing(how, is_open):
    queue, work, ended = WaitingQueue(1), [], []
    assert queue.wait_for(lambda: True) is True
    thread = threading.Thread(target=lambda: ended.append(queue.wait_for(lambda: work or len(queue))))
    thread.start()
    if how == "wake":
        work.append(1)
    getattr(queue, how)(*[line((0, 0))] * (how == "add"))
    thread.join(5)
    assert ended == [is_open]
    for refused in () if is_open else (queue.wake, queue.require_open, lambda: queue.add(line((0, 0)))):
        with pytest.raises(NotReady) as closed:
            refused()
        assert closed.value.detail == "The model was taken out of service."
    assert len(queue) == (how == "add")
