"""Models whose answer is known (a mirror per datatype, slow, NaN, failing), and a server for them.

`serving(...)` runs a replica on free ports in a thread, so that synchronous clients can call it from the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel

from fovea.api.tensors import TensorSpec
from shared import telemetry
from shared.registry import Limits, Servable
from shared.rpc.tensors import DTYPES
from shared.serving.build_app import build
from shared.serving.replica import ReplicaServer
from shared.settings import Settings
from tests.harness.models import toy_card
from tests.harness.waiting import until, wait_until

Deed = Callable[[np.ndarray], np.ndarray]


class Nothing(BaseModel):
    """No options."""


class MirrorEngine:
    """Hands `in` back as `out`, and its number of elements as `size`; counts its runs."""

    name = "mirror"

    def __init__(self, datatype: Any, deed: Deed, axes: tuple[int, ...]) -> None:
        self.inputs = (TensorSpec(name="in", datatype=datatype, shape=axes),)
        self.outputs = (
            TensorSpec(name="out", datatype=datatype, shape=axes),
            TensorSpec(name="size", datatype="INT64", shape=(-1,)),
        )
        self.deed = deed
        self.runs: list[tuple[int, ...]] = []

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        array = feeds["in"]
        self.runs.append(array.shape)
        return {"out": self.deed(array), "size": np.full(array.shape[:1], array[0].size, np.int64)}

    def close(self) -> None:
        """Nothing is held."""


def mirror(
    name: str, datatype: str = "FP32", deed: Deed = lambda array: array, axes: tuple[int, ...] = (-1, -1)
) -> type[Servable[Any, Any]]:
    class Mirror(Servable[Nothing, Nothing]):
        card = toy_card(name, "echo", version="3", limits=Limits(max_batch=64))
        In, Out = Nothing, Nothing

        def __init__(self) -> None:
            self.engine = MirrorEngine(datatype, deed, axes)

        @classmethod
        def load(cls, place: Any) -> Mirror:  # the contract
            if name == "broken":
                raise RuntimeError("a secret path /etc/secret")
            return cls()

        def predict(self, batch: Sequence[Nothing], run: Any) -> list[Any]:
            return [Nothing() for _ in batch]

    return Mirror


def _slowly(array: np.ndarray) -> np.ndarray:
    time.sleep(0.3)
    return array


def _fail(array: np.ndarray) -> np.ndarray:
    raise ZeroDivisionError("a secret path /etc/secret")


MIRRORS: dict[str, type[Servable[Any, Any]]] = {
    **{f"mirror/{datatype.lower()}": mirror(f"mirror/{datatype.lower()}", datatype) for datatype in DTYPES},
    "picture": mirror("picture", axes=(-1, 3, -1, -1)),
    "slow": mirror("slow", deed=_slowly),
    "holes": mirror("holes", deed=lambda array: np.full_like(array, np.nan)),
    "buggy": mirror("buggy", deed=_fail),
}


def limited(**more: Any) -> Settings:
    return Settings(_env_file=None, max_body_bytes=2**20, shutdown_grace_s=1, **more)


@contextlib.contextmanager
def serving(
    servables: Mapping[str, type[Servable[Any, Any]]] | None = None, settings: Settings | None = None
) -> Iterator[ReplicaServer]:
    chosen = settings or limited()
    replica = ReplicaServer(build("mirrors", servables=servables or MIRRORS, settings=chosen), chosen)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def wait(work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result(20)

    try:
        wait(replica.start())
        wait_until(lambda: not replica.host.is_loading)
        yield replica
    finally:
        wait(replica.stop())
        wait(loop.shutdown_default_executor())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def engine(replica: ReplicaServer, name: str) -> MirrorEngine:
    found = replica.host.servable(name).engine
    assert isinstance(found, MirrorEngine)
    return found


class Gate:
    """Holds a model's runs until opened, so that tests need no guesses about time."""

    def __init__(self, host: Any, name: str) -> None:
        self.engine = host.servable(name).engine
        self.labels = (host.service, name)
        self._opened = threading.Event()
        self.engine.deed = self._pass

    def _pass(self, array: np.ndarray) -> np.ndarray:
        assert self._opened.wait(20), "nobody opened the gate"
        return array

    def open(self) -> None:
        self._opened.set()

    async def holds(self, *, running: int, waiting: int) -> None:
        await until(lambda: (len(self.engine.runs), self._waiting()) == (running, waiting), 10, f"{running}, {waiting}")

    def _waiting(self) -> int:
        samples = (s for family in telemetry.QUEUE_DEPTH.labels(*self.labels).collect() for s in family.samples)
        return int(sum(sample.value for sample in samples))


def sample(datatype: str, shape: tuple[int, ...] = (2, 3)) -> np.ndarray:
    count = int(np.prod(shape))
    if datatype == "BYTES":
        array = np.empty(count, object)
        array[:] = [b"", b"a", "hä".encode(), b"end", b"x" * 300, b"1"][:count]
        return array.reshape(shape)
    values = np.arange(count) - (0 if datatype.startswith(("U", "BOOL")) else count // 2)
    return (values % 2 if datatype == "BOOL" else values).astype(DTYPES[datatype]).reshape(shape)
