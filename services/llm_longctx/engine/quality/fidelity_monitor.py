"""The fidelity watch: a sampled share of answers is compared with dense, off-peak; what strays is held back for dense.

Judged is a variant: a method with its knobs, plan and budget, so that nobody's extreme knobs take a method from others.
While one is held back, the watch goes on trying it on the dense answers, so that it can come back. Knows what an answer
was and whom to tell; when there is time for it, the scheduler knows.
"""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from contextvars import Context
from typing import TYPE_CHECKING

from services.llm_longctx.engine.method_policy import Policy
from services.llm_longctx.engine.quality.drift_gate import DriftGate
from services.llm_longctx.engine.quality.fidelity import Fidelity, comparing
from shared import telemetry

if TYPE_CHECKING:
    from services.llm_longctx.engine.answer import Answer
    from services.llm_longctx.engine.llm_engine import Engine
    from services.llm_longctx.engine.open_sequence import OpenSequence

__all__ = ["FidelityMonitor"]

VARIANTS = 256
"""Variants that are remembered; the one that was not asked for longest is forgotten first."""


class FidelityMonitor:
    """Agreement with dense attention, per variant. Requests ask it on their threads, the engine tells it on its own."""

    def __init__(
        self,
        share: float = 0.01,
        floor: float = 0.0,
        seed: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch a share of all answers.

        Args:
            share: Probability that an answer is compared, 0 to 1.
            floor: A variant whose median top-1 agreement is below this is held back; 0 never.
            seed: Makes the sample repeatable.
            clock: Seconds.
        """
        self._share = share
        self._floor = floor
        self._random = random.Random(seed)
        self._clock = clock
        self._standings: OrderedDict[tuple[str, str], DriftGate] = OrderedDict()  # by method's name and variant
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Variants that something is known of."""
        return len(self._standings)

    def work(self, engine: Engine, answer: Answer[OpenSequence]) -> Generator[None, None, None] | None:
        """What is to be done about an answer that is over: nothing, or a comparison to be run when there is time."""
        context, order = answer.context, answer.order
        policy = order.wanted or order.policy or engine.policy
        dense = policy.method.name == engine.dense.method.name
        if dense or not answer.produced or self._random.random() >= self._share:
            return None
        return comparing(
            engine, order.ids, list(answer.produced), policy, lambda found: self._tell(context, policy, found)
        )

    def breach(self, policy: Policy) -> str | None:
        """Why dense is to serve in its place at present, or None."""
        if not self._standings:
            return None
        name, now = policy.method.name, self._clock()
        key = name, policy.variant
        with self._lock:
            if (standing := self._standings.get(key)) is None:
                return None
            self._standings.move_to_end(key)
            held = standing.held
            if held != standing.judge(now):
                self._count(name)
            if not standing.held:
                return None
            return (
                f"{name} with these knobs agreed with dense attention on {standing.median(now):.0%} of tokens (median "
                f"of {len(standing)} answers that were compared), and fell below the floor of {self._floor:.0%}. It "
                f"is still tried on a share of {self._share:.3g} of its requests, and serves again from "
                f"{standing.back:.0%} on."
            )

    def _tell(self, context: Context, policy: Policy, found: Fidelity) -> None:
        name = policy.method.name
        key = name, policy.variant
        with self._lock:
            standing = self._standings.setdefault(key, DriftGate(self._floor))
            self._standings.move_to_end(key)
            standing.add(found.agreement, self._clock())
            changed = {name}
            while len(self._standings) > VARIANTS:
                changed.add(self._standings.popitem(last=False)[0][0])
            for one in changed:
                context.run(self._count, one)
        context.run(telemetry.observe_fidelity, name, found.divergence, found.agreement, found.delta)

    def _count(self, method: str) -> None:
        """Tell how many variants of a method are held back; the lock is held."""
        held = sum(s.held for (name, _), s in self._standings.items() if name == method)
        telemetry.held_back(method, held)
