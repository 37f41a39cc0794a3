"""Recorded decode steps, with a stand-in for CUDA's graphs: replays answer as steps that run as they are."""

import copy

import numpy as np
import pytest
import torch

from services.llm_longctx.engine import Engine, GenerationRequest, Request, Sampling
from services.llm_longctx.engine.attention.step_rows import RowRuns
from services.llm_longctx.engine.device.fixed_step import FixedStep, StepShape
from services.llm_longctx.engine.device.graph_steps import GraphSteps
from services.llm_longctx.kv_cache import PagePool
from services.llm_longctx.methods import method
from services.llm_longctx.tests.conftest import Ear
from services.llm_longctx.tests.hooks import Listeners
from tests.device.paths import RECORDED, is_recorded, knobs_of
from tests.device.pretend_cuda import PretendCuda, to_cuda
from tests.device.stand_in_graph import PlainRecorder, StandInGraph
from tests.device.test_engine import CASES, IDS, PLAN, adapter, net, on_cuda, plain, play
from tests.device.test_serving import FAMILIES, both, engine_on
from tests.device.test_triton import interpreted_launches
from tests.harness.hypothesis_profiles import in_depth

PLAIN = [(name, which) for name, which, bits in CASES if bits == 16]
WHOLE = [(name, which) for name, which in PLAIN if is_recorded(method(name, **knobs_of(name)[which]))]
KNOBS = [{}, {"temperature": 1.1, "seed": 3, "top_p": 0.9}, {"temperature": 0.9, "seed": 5, "repetition_penalty": 1.3}]


@pytest.fixture
def graph():
    """A recorder that sees launches of the interpreter, too."""
    made = StandInGraph()
    with interpreted_launches(lambda _, run: made.launches is not None and made.launches.append(run)):
        yield made


def answers(how, bits, recorder: StandInGraph | None, device: PretendCuda, rank=0, most=6) -> list[list[int]]:
    """Three answers of different lengths; the third shares a prefix, and with a rank the first has an adapter."""
    # Triton's kernels run under a recorder alone: interpreted they are slow, and `test_triton.py` compares them.
    model, backend = to_cuda(copy.deepcopy(net()), device), "cpu_torch" if recorder is None else "triton"
    engine = Engine(model, how, PLAN, page=16, backend=backend, cache_bits=bits, kv_bytes=1 << 20, prefix_block=16)
    passes = engine.runner.passes
    if recorder is not None:
        passes.graphs = GraphSteps(passes.run_fixed, engine.pool, recorder, "triton", batches=(1, 3))
    ears = [Ear() for _ in KNOBS]
    for i, (knobs, ear) in enumerate(zip(KNOBS, ears, strict=True)):
        begin = 0 if i == 2 else 3 * i
        ids, drawn = IDS[begin : begin + 20 + i], [Sampling(**knobs)]
        lora = adapter(model, rank) if rank and not i else None
        engine.scheduler.add_request(GenerationRequest(ids, drawn, most - i, hooks=Listeners(ear), adapter=lora))
    scheduler = engine.scheduler
    while scheduler.in_flight:
        if scheduler.waiting or scheduler.prefilling:
            scheduler.step()
            continue
        before = device.transfers["read"], device.transfers["sent"]
        with device.decoding():
            scheduler.step()
        packs = bits != 16  # pages that have become full are packed where the host says
        assert device.transfers["read"] - before[0] == 1
        assert device.transfers["sent"] - before[1] == 1 or packs
    scheduler.close()
    assert all(ear.ids for ear in ears), "a request failed"
    return [ear.ids for ear in ears]


@pytest.mark.parametrize(("name", "bits"), in_depth(RECORDED, RECORDED[:2]))
def test_replays_answer_as_steps_that_run_as_they_are(graph, name, bits):
    how, device = method(name, **knobs_of(name)[0]), PretendCuda()
    with device.active():
        wanted = answers(how, bits, None, device)
        found = answers(how, bits, graph, device)
    assert found == wanted
    assert graph.records >= 1
    assert graph.replays >= 3


def test_steps_with_adapters_run_unrecorded_in_the_place_of_a_recording(graph):
    device = PretendCuda()
    with device.active():
        wanted, plain = (answers("dense", 16, None, device, rank, most=4) for rank in (3, 0))
        assert answers("dense", 16, graph, device, rank=3, most=4) == wanted
    assert graph.replays == 0
    assert wanted[0] != plain[0]
    assert wanted[1:] == plain[1:]


class Rows:
    """A step of some sequences with a run of some entries each."""

    draws, is_marked = None, False

    def __init__(self, tokens: list[int], positions: list[int] | None = None, longest: int = 5) -> None:
        shape = (2, 3 * len(tokens))
        self.tokens, self.positions = tokens, positions or [0] * len(tokens)
        self.slots = np.arange(2 * shape[1]).reshape(shape)
        self.own = RowRuns(None, 0, np.full(shape, 7), np.full(shape, longest), np.zeros(shape, bool))

    def groups(self):
        return []


@pytest.mark.parametrize(("name", "which"), in_depth(WHOLE, [case for case in WHOLE if not case[1]]))
def test_each_method_that_is_recorded_answers_alike(name, which):
    how, device = method(name, **knobs_of(name)[which]), PretendCuda()
    recorder = PlainRecorder(device=device)
    with device.active():
        found = play(on_cuda(device), how, 16, recorder=recorder).cpu()
    assert torch.allclose(found, plain(name, which, 16), atol=2e-4)
    assert recorder.records


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_recorded(family):
    def run(device):
        engine = engine_on(device, family)
        if device is not None:
            passes, made = engine.runner.passes, PlainRecorder(device=device)
            passes.graphs = GraphSteps(passes.run_fixed, engine.pool, made, "cpu_torch")
        answers = [one.tokens for one in engine.generate([Request(IDS[:end], max_tokens=6) for end in (30, 9)])]
        assert device is None or made.records >= 1
        return answers

    wanted, found = both(run)
    assert found == wanted


def double(step: FixedStep):
    """Logits that show what a step was given."""
    logits = torch.cat((step.ids, step.positions, step._slots[0].view(len(step.ids), -1)), 1).double()
    return logits, 2 * step.ids[:, 0].double()


def steps_of(recorder, **facts) -> GraphSteps:
    return GraphSteps(double, PagePool(64, 16, 8, torch.float32), recorder, "cpu_torch", **facts)


def test_batches_are_filled_up_with_rows_that_write_to_a_spare_page():
    recorder = PlainRecorder()
    graphs = steps_of(recorder, batches=(1, 4))
    for token in (10, 20, 30):
        logits = graphs.step(Rows([token, token + 1], [5, 6]))
        assert (logits[:, :2].tolist(), logits[1, 2:].tolist()) == ([[token, 5], [token + 1, 6]], [3, 4, 5])
    held = next(iter(graphs._held.values())).step
    assert held.shape.batch == 4
    spare = held._slots[:, 6:].unique()
    assert (len(spare), int(spare) % 16, graphs._pool.held) == (1, 0, 1)
    assert (recorder.records, len(graphs)) == (1, 1)


def test_what_cannot_be_recorded_runs_as_it_is_and_is_tried_once():
    assert steps_of(PlainRecorder(), batches=(1, 2)).step(Rows([1, 2, 3])) is None, "a larger batch than any"
    pool = PagePool(1, 16, 8, torch.float32)
    pool.commit(np.array([pool.reserve(1)]))
    assert GraphSteps(double, pool, PlainRecorder(), "cpu_torch").step(Rows([1])) is None, "a full pool"
    recorder = PlainRecorder(fails=True)
    graphs = steps_of(recorder)
    assert [graphs.step(Rows([token]))[0, 0].item() for token in range(4)] == [0, 1, 2, 3]
    assert (recorder.records, len(graphs)) == (1, 0)


def test_each_shape_is_recorded_and_the_oldest_goes():
    recorder = PlainRecorder()
    graphs = steps_of(recorder, most=2)
    for longest in (5, 200, 300, 600):  # up to 256 entries are one shape
        for _ in range(2):
            graphs.step(Rows([1], longest=longest))
    assert (recorder.records, len(graphs)) == (3, 2)


def test_a_shape_has_all_that_decides_on_launches():
    rows = Rows([1, 2], longest=300)
    plain = StepShape.of(rows, 4)
    assert plain == StepShape(4, 2, 3, ((0, 512),), weighted=False, marked=False)
    rows.own.weighted[0, 0], rows.is_marked = True, True
    assert StepShape.of(rows, 4) == plain._replace(weighted=True, marked=True)
