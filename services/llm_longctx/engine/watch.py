"""The fidelity watch: a sampled share of answers is run again densely, off-peak, and a method that strays is replaced.

Knows what an answer was and whom to tell; when there is time for it, the scheduler knows.
"""

from __future__ import annotations

import random
import statistics
from collections import defaultdict, deque
from collections.abc import Generator
from contextvars import Context
from typing import TYPE_CHECKING

from services.llm_longctx.engine.fidelity import Fidelity, comparing
from services.llm_longctx.engine.policy import Policy
from shared import telemetry

if TYPE_CHECKING:
    from services.llm_longctx.engine.answer import Answer
    from services.llm_longctx.engine.engine import Engine
    from services.llm_longctx.engine.open_sequence import OpenSequence

__all__ = ["Watch"]

WINDOW = 50
"""Answers of a method that are looked at together."""

LEAST = 10
"""Answers before anything is said about a method."""


class Watch:
    """Agreement with dense attention, per method."""

    def __init__(self, share: float = 0.01, floor: float = 0.0, seed: int | None = None) -> None:
        """Watch a share of all answers.

        Args:
            share: Probability that an answer is run again, 0 to 1.
            floor: A method whose median top-1 agreement over the last answers is below this is served densely; 0 never.
            seed: Makes the sample repeatable.
        """
        self._share = share
        self._floor = floor
        self._random = random.Random(seed)
        self._seen: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW))

    def work(self, engine: Engine, answer: Answer[OpenSequence]) -> Generator[None, None, None] | None:
        """What is to be done about an answer that is over: nothing, or a comparison to be run when there is time."""
        context, policy = answer.context, answer.order.policy or engine.policy
        dense = policy.method.name == engine.dense.method.name
        if dense or not answer.produced or self._random.random() >= self._share:
            return None
        return comparing(
            engine, answer.order.ids, list(answer.produced), policy, lambda found: self._tell(context, policy, found)
        )

    def breach(self, method: str) -> str | None:
        """Why a method is not served at present, or None."""
        seen = list(self._seen.get(method, ()))
        if len(seen) < LEAST or (median := statistics.median(seen)) >= self._floor:
            return None
        return (
            f"{method} agreed with dense attention on {median:.0%} of tokens (median of the last {len(seen)} answers "
            f"that were checked), below the floor of {self._floor:.0%}"
        )

    def _tell(self, context: Context, policy: Policy, found: Fidelity) -> None:
        name = policy.method.name
        self._seen[name].append(found.agreement)
        context.run(telemetry.observe_fidelity, name, found.divergence, found.agreement, found.delta)
