"""Context of a batch: its members seen as one call, and their spans."""

import math
from collections.abc import Sequence

from shared import telemetry
from shared.registry import CallContext


class BatchContext(CallContext):
    """Context of a batch: it stops when every member has stopped, and reports progress to every member."""

    def __init__(self, runs: Sequence[CallContext]) -> None:
        deadlines = [math.inf if run.deadline is None else run.deadline for run in runs]
        super().__init__(
            deadline=None if math.inf in deadlines else max(deadlines),
            report=self._report_to_members,
            # Of several tenants it is nobody's: what a batch stores or reads would be all of theirs.
            tenant=runs[0].tenant if len({run.tenant for run in runs}) == 1 else "",
        )
        self._members = tuple(runs)
        self.media = runs[0].media

    def _report_to_members(self, fraction: float, note: str | None) -> None:
        for run in self._members:
            run.progress(fraction, note)

    @property
    def cancelled(self) -> bool:
        return all(run.cancelled for run in self._members)

    def check(self) -> None:
        if self.cancelled:
            self.cancel()
        super().check()


class BatchSpan:
    """A span for each member of a batch, linked to the others; what the batch does is done in the traces of all."""

    def __init__(self, parents: Sequence[str], rows: int) -> None:
        """Begin one under each of `parents`, the trace parents of the members."""
        size = {"fovea.batch.size": len(parents), "fovea.batch.rows": rows}
        self._spans = [
            telemetry.span("batch", size, parent=parent, links=(*parents[:i], *parents[i + 1 :]))
            for i, parent in enumerate(parents)
            if parent and telemetry.is_tracing()
        ]
        self._bound = telemetry.bind(traceparent=",".join(one.traceparent for one in self._spans))

    def __enter__(self) -> None:
        self._bound.__enter__()

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._bound.__exit__()
        for one in self._spans:
            if error is not None:
                one.fail(error)
            one.end()
