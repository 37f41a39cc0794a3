"""RULER-form evaluation of a loaded model: on its scheduler's thread, in steps, while no request waits."""

from collections.abc import Iterable
from pathlib import Path

from fovea_lab.idle_run import run_when_idle
from fovea_lab.ruler.report import Prediction, RulerReport
from fovea_lab.ruler.run import EvaluatedModel, run_ruler
from fovea_lab.ruler.spec import RulerSpec
from services.llm_longctx.serving.adapters.decoder import DecoderAdapter
from shared.registry import CallContext


def evaluate_idle(adapter: DecoderAdapter, run: CallContext) -> EvaluatedModel:
    """Return the model of an adapter for evaluations that yield to its requests."""
    return EvaluatedModel(
        adapter.engine,
        adapter.tokenizer,
        adapter.plans,
        adapter.name,
        lambda work: run_when_idle(adapter.scheduler, work, run),
    )


def run_served(
    adapter: DecoderAdapter,
    spec: RulerSpec,
    run: CallContext,
    *,
    qa: Path | None = None,
    corpus: str | None = None,
    store: Path | None = None,
    extra: Iterable[Prediction] = (),
) -> RulerReport:
    """Evaluate methods behind all other requests; the files are those of `run_ruler`.

    Raises:
        InvalidOption: A task or method is unknown, or a length is too short or too long.
        Cancelled: The caller went away, or requests needed the memory.
    """
    on = evaluate_idle(adapter, run)
    report = run_ruler(on, spec, progress=run.progress, check=run.check, qa=qa, corpus=corpus, store=store, extra=extra)
    run.progress(1.0, "all samples answered")
    return report
