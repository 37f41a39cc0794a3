"""RULER-form evaluation on a model in this process: loads the model, evaluates, and closes it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

from services.llm_longctx.evaluation.local_run import load_decoder_model
from services.llm_longctx.evaluation.ruler.run import Evaluated
from shared.settings import settings

__all__ = ["run_at_once", "with_model"]

T = TypeVar("T")


def run_at_once(work: Generator[None, None, T]) -> T:
    """Do work in pieces without a pause."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result


@contextmanager
def with_model(name: str | None) -> Iterator[Evaluated]:
    """The named model, by default the one that the settings name."""
    loaded = load_decoder_model(name or settings().llm_model)
    try:
        adapter = loaded.adapter
        yield Evaluated(adapter.engine, adapter.tokenizer, adapter.plans, adapter.name, run_at_once)
    finally:
        loaded.close()
