"""RULER-form evaluation of a served model: on its scheduler's thread, in pieces, while no request waits."""

from __future__ import annotations

from fovea_lab.idle_run import run_when_idle
from fovea_lab.ruler.report import RulerReport
from fovea_lab.ruler.run import EvaluatedModel, RulerSpec, run_ruler
from services.llm_longctx.serving.adapters.decoder import DecoderAdapter
from shared.registry import CallContext


def run_served(adapter: DecoderAdapter, spec: RulerSpec, run: CallContext) -> RulerReport:
    """Evaluate methods behind all other requests.

    Raises:
        InvalidOption: A task or method is unknown, or a length is too short or too long.
        Cancelled: The caller went away, or requests needed the memory.
    """
    on = EvaluatedModel(
        adapter.engine,
        adapter.tokenizer,
        adapter.plans,
        adapter.name,
        lambda work: run_when_idle(adapter.scheduler, work, run),
    )
    report = run_ruler(on, spec, progress=run.progress, check=run.check)
    run.progress(1.0, "all samples answered")
    return report
