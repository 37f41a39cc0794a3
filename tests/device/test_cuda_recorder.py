"""The recorder of CUDA graphs, with torch's own context of a capture over a driver that is pretended."""

import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from services.llm_longctx.engine.device.graph_steps import CudaRecorder
from services.llm_longctx.kernels.device.launch import Launch
from tests.device.pretend_cuda import CUDA, PretendCuda


class Driver:
    """CUDA as torch asks it around a capture: streams per thread, and captures that a waiting device ends."""

    def __init__(self) -> None:
        self.local = threading.local()
        self.capturing = 0
        self.is_broken = False

    def current(self) -> str:
        return getattr(self.local, "stream", "default")

    def synchronize(self) -> None:
        if self.capturing:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")


class StreamContext:
    """As torch's: a class, so that nobody leaves a context in its place."""

    def __init__(self, driver: Driver, stream: str) -> None:
        self.driver, self.stream = driver, stream

    def __enter__(self) -> None:
        self.before, self.driver.local.stream = self.driver.current(), self.stream

    def __exit__(self, *args: object) -> None:
        self.driver.local.stream = self.before


class Graph:
    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def capture_begin(self, *pool: object, **facts: object) -> None:
        self.driver.capturing += 1

    def capture_end(self) -> None:
        self.driver.capturing -= 1
        if self.driver.is_broken:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    def pool(self) -> tuple[int, int]:
        return 0, 1

    def replay(self) -> None:
        """Nothing to do."""


@pytest.fixture
def driver(monkeypatch):
    made = Driver()
    for name, value in {
        "Stream": lambda _: "side", "stream": partial(StreamContext, made), "CUDAGraph": partial(Graph, made),
        "current_stream": lambda *_: made.current(),  # torch 2.14 asks for it
        "synchronize": made.synchronize, "empty_cache": lambda: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
    with PretendCuda().active():
        yield made


def test_a_recording_runs_on_its_own_stream_and_comes_back_where_cuda_refuses_it_too(driver):
    """Else the thread went on there, unordered with all that it had launched before."""
    seen = []
    CudaRecorder(CUDA).record(lambda: seen.append(driver.current()))
    assert (seen, driver.current()) == (["side"], "default")
    driver.is_broken = True
    with pytest.raises(RuntimeError, match="previous error"):
        CudaRecorder(CUDA).record(lambda: None)
    assert driver.current() == "default"


def test_two_models_never_record_at_once(driver):
    """A recording begins by waiting for the whole device, which ends another one that is being made."""
    recorders = [CudaRecorder(CUDA) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(one.record, lambda: time.sleep(0.1)) for one in recorders]
    assert [one.exception() for one in done] == [None, None]


def test_a_kernel_runs_on_its_tensors_card_whichever_is_the_threads(monkeypatch):
    """Triton launches on the thread's current device: with `FOVEA_DEVICE=cuda:1` that is another one."""
    current, seen = [0], []

    def exchange(index: int) -> int:
        before, current[0] = current[0], index
        return before

    monkeypatch.setattr(torch.cuda, "_exchange_device", exchange)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", exchange)
    kernel = defaultdict(lambda: lambda *_, **__: seen.append(current[0]))
    Launch(kernel, {})((1,), SimpleNamespace(is_cuda=True, get_device=lambda: 1))
    assert (seen, current) == ([1], [0])
