"""Time functions in alternating rounds, so that changes of the machine affect all alike. Knows clocks and threads."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


def milliseconds(
    contenders: Mapping[str, Callable[[], Any]],
    rounds: int,
    calls: int,
    clock: Callable[[], float] = time.perf_counter,
    *,
    warm: bool = True,
) -> dict[str, list[float]]:
    """Milliseconds per call of each contender, one figure a round; each is called once before the clock runs.

    With `time.process_time` they are of the processor, which others on the machine disturb less. `warm=False` leaves
    the first call to whoever made the contenders.
    """
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values() if warm else ():
        call()
    for _ in range(rounds):
        for name, call in contenders.items():
            begun = clock()
            for _ in range(calls):
                call()
            found[name].append((clock() - begun) * 1000 / calls)
    return found


@contextmanager
def threads(count: int = 2) -> Iterator[None]:
    """Run a block with this many threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
