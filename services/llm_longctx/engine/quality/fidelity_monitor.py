"""Fidelity monitor: compares a sampled share of answers with dense, off-peak, and holds back methods that drift.

Judged is a variant: a method with its knobs, plan and budget, so that nobody's extreme knobs take a method from others.
While one is held back, it is still tried on the dense answers, so that it can come back. Knows sequences and metrics;
when there is time for a comparison, the scheduler knows.
"""

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from contextvars import Context

from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.engine.model_runner import ModelRunner
from services.llm_longctx.engine.quality.background_tasks import BackgroundTasks
from services.llm_longctx.engine.quality.circuit_breaker import FidelityCircuitBreaker
from services.llm_longctx.engine.quality.fidelity import Fidelity, compare_to_dense
from services.llm_longctx.engine.sequence import Sequence
from shared import telemetry

MAX_COMPARISONS = 8
"""Comparisons that may wait for a quiet moment; under steady load the monitor sees fewer answers."""

MAX_VARIANTS = 256
"""Variants that are remembered; the one that was not asked for longest is forgotten first."""


class FidelityMonitor:
    """Agreement with dense attention, per variant. Asked on the threads of requests, fed on the scheduler's."""

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
        # By name and variant of the method.
        self._gates: OrderedDict[tuple[str, str], FidelityCircuitBreaker] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Variants that something is known of."""
        return len(self._gates)

    def watch(self, runner: ModelRunner, sequence: Sequence[PagedState], tasks: BackgroundTasks) -> None:
        """Line up a comparison for a share of the sequences that end."""
        if len(tasks) < MAX_COMPARISONS and (comparison := self.sample(runner, sequence)) is not None:
            tasks.add(comparison)

    def sample(self, runner: ModelRunner, sequence: Sequence[PagedState]) -> Generator[None, None, None] | None:
        """For a share of the sequences that end: a comparison to run when there is time; None for the others."""
        context, request = sequence.context, sequence.request
        policy = request.fallback_from or sequence.state.policy
        is_dense = policy.method.name == runner.dense.method.name and policy.cache_bits == 16
        if is_dense or sequence.taps is not None or not sequence.output_ids or self._random.random() >= self._share:
            return None
        answer, asked_at = list(sequence.output_ids), time.perf_counter()

        def record(found: Fidelity) -> None:
            self._record(context, policy, found)
            context.run(self._record_span, policy.method.name, found, time.perf_counter() - asked_at)

        return compare_to_dense(runner, request.prompt_ids, answer, policy, record, request.adapter)

    def held_back_reason(self, policy: Policy) -> str | None:
        """Why dense is to serve in its place at present, or None."""
        if not self._gates:
            return None
        name, now = policy.method.name, self._clock()
        key = name, policy.variant
        with self._lock:
            if (gate := self._gates.get(key)) is None:
                return None
            self._gates.move_to_end(key)
            held = gate.held
            if held != gate.judge(now):
                self._report(name)
            if not gate.held:
                return None
            return (
                f"{name} with these knobs agreed with dense attention on {gate.median(now):.0%} of tokens (median "
                f"of {len(gate)} answers that were compared), and fell below the floor of {self._floor:.0%}. It "
                f"is still tried on a share of {self._share:.3g} of its requests, and serves again from "
                f"{gate.back:.0%} on."
            )

    def _record(self, context: Context, policy: Policy, found: Fidelity) -> None:
        name = policy.method.name
        key = name, policy.variant
        with self._lock:
            gate = self._gates.setdefault(key, FidelityCircuitBreaker(self._floor))
            self._gates.move_to_end(key)
            gate.add(found.agreement, self._clock())
            changed = {name}
            while len(self._gates) > MAX_VARIANTS:
                changed.add(self._gates.popitem(last=False)[0][0])
            for one in changed:
                context.run(self._report, one)
        context.run(telemetry.observe_fidelity, name, found.divergence, found.agreement, found.delta)

    def _record_span(self, method: str, found: Fidelity, seconds: float) -> None:
        """The comparison in the trace of the request, where it comes after the answer."""
        attributes = {
            "fovea.method": method,
            "fovea.fidelity.kl": found.divergence,
            "fovea.fidelity.agreement": found.agreement,
            "fovea.fidelity.loss": found.delta,
            "fovea.fidelity.verdict": "faithful" if found.agreement >= self._floor else "strayed",
        }
        telemetry.record_span("compare with dense", seconds, attributes)

    def _report(self, method: str) -> None:
        """Set the gauge of how many variants of a method are held back; the lock is held."""
        held = sum(s.held for (name, _), s in self._gates.items() if name == method)
        telemetry.held_back(method, held)
