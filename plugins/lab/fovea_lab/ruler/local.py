"""RULER-form evaluation of a model in this process: loads the model, evaluates or exports samples, and closes it."""

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fovea_lab.local_run import open_adapter, parse_options, show_progress
from fovea_lab.ruler.answer_store import read_predictions
from fovea_lab.ruler.report import RulerReport
from fovea_lab.ruler.run import export_samples
from fovea_lab.ruler.served import evaluate_idle, run_served
from fovea_lab.ruler.spec import RulerSpec
from shared.registry import CallContext


def evaluate(
    model: str | None,
    options: Mapping[str, Any],
    *,
    qa: Path | None,
    corpus: str | None,
    store: Path | None,
    peers: Iterable[Path],
) -> RulerReport:
    """Evaluate the named model, and score predictions of peers on the same samples; see `run_ruler`.

    Raises:
        InvalidOption: An option is out of range, or the model has attention of its own.
    """
    spec = parse_options(RulerSpec, options)
    with open_adapter(model) as adapter, show_progress("ruler") as progress:
        decode = partial(adapter.tokenizer.decode, special=False)
        extra = [one for path in peers for one in read_predictions(path, decode)]
        run = CallContext(report=progress)
        return run_served(adapter, spec, run, qa=qa, corpus=corpus, store=store, extra=extra)


def write_samples(
    model: str | None, options: Mapping[str, Any], out: Path, *, qa: Path | None, corpus: str | None
) -> None:
    """Write samples with their tokens as JSONL, for peers; raises as `evaluate`."""
    spec = parse_options(RulerSpec, options)
    with open_adapter(model) as adapter:
        rows = export_samples(evaluate_idle(adapter, CallContext()), spec, qa=qa, corpus=corpus)
        out.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
