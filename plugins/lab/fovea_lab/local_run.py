"""Evaluations of a model in this process: loads the model, measures, and closes it.

Knows models, settings and a progress bar; what is measured is in `method_quality`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.progress import Progress

from fovea.errors import InvalidOption
from services.llm_longctx.serving.adapters.decoder import DecoderAdapter
from services.llm_longctx.serving.decoder_model import DecoderModel
from services.llm_longctx.serving.local_models import select_models
from shared.registry import CallContext
from shared.serving.device_placement import load_context
from shared.settings import settings

_Request = TypeVar("_Request", bound=BaseModel)
_Report = TypeVar("_Report")


def run_local(
    evaluate: Callable[[DecoderAdapter, _Request, CallContext], _Report],
    request_type: type[_Request],
    model: str | None,
    options: Mapping[str, Any],
) -> _Report:
    """Evaluate the named model, by default the one that the settings name, with a bar in the terminal.

    Raises:
        InvalidOption: An option is out of range, or the model has attention of its own.
    """
    request = parse_options(request_type, options)
    with open_adapter(model) as adapter, show_progress(evaluate.__name__.removeprefix("run_")) as progress:
        return evaluate(adapter, request, CallContext(report=progress))


def parse_options(request_type: type[_Request], options: Mapping[str, Any]) -> _Request:
    """The request that options of a command make; InvalidOption if one is out of range."""
    try:
        return request_type.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidOption(f"{'.'.join(map(str, first['loc']))}: {first['msg']}.") from error


@contextmanager
def show_progress(name: str) -> Iterator[Callable[[float, str | None], None]]:
    """A bar on standard error, and the function that moves it to a share, with a note."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=1.0)
        yield lambda share, note: bar.update(task, completed=share, description=note or name)


@contextmanager
def open_adapter(name: str | None) -> Iterator[DecoderAdapter]:
    """The adapter of the named decoder, by default the one that the settings name.

    Raises:
        InvalidOption: The model has attention of its own.
    """
    loaded = _load_decoder_model(name or settings().llm_model)
    try:
        yield loaded.adapter
    finally:
        loaded.close()


def _load_decoder_model(name: str) -> DecoderModel:
    """Load a decoder by its served name, or from a folder or file; refuse a model with attention of its own."""
    models = select_models(name)
    kind = next((kind for known, kind in models.items() if known.startswith(name)), next(iter(models.values())))
    if not issubclass(kind, DecoderModel):
        detail = f"{kind.card.name} has attention of its own; there is no method to compare it with."
        raise InvalidOption(detail, hint="Name a decoder.", field="model")
    return kind.load(load_context(settings()))
