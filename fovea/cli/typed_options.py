"""Command-line options from a request's wire type, so that they are declared only once."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fovea.cli.option_groups import declare_parameters, expand_options

_PANEL = "Model"


def add_request_options(
    command: Callable[..., None], kind: type[BaseModel], *, without: frozenset[str]
) -> Callable[..., None]:
    """Add the fields of a request to a command as options, but for those in `without`.

    The command takes those that were given as `options: dict[str, Any]`, next to its own parameters.
    """
    command = expand_options(command)
    own = inspect.signature(command).parameters
    added = {parameter.name: parameter for parameter in _parameters(kind, without)}

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        options = {name: value for name in added if (value := values.pop(name)) is not None}
        command(**values, options=options)

    parameters = [parameter for parameter in own.values() if parameter.name != "options"] + list(added.values())
    return declare_parameters(wrapper, parameters)


def _parameters(kind: type[BaseModel], without: frozenset[str]) -> Iterator[inspect.Parameter]:
    for name, field in kind.model_fields.items():
        if name in without:
            continue
        option = typer.Option(
            help=_help(field),
            show_default=False,
            rich_help_panel=_PANEL,
            min=_bound(field, "ge"),
            max=_bound(field, "le"),
        )
        kind_of_value: Any = _type(field) | None
        annotation: Any = operator.getitem(cast("Any", Annotated), (kind_of_value, option))
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _type(field: FieldInfo) -> Any:
    """The type of a field where the command line supports it, text otherwise; null is left out."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    kind = kinds[0] if len(kinds) == 1 and get_origin(field.annotation) in {Union, UnionType} else field.annotation
    return kind if kind in {bool, int, float} or get_origin(kind) is Literal else str


def _bound(field: FieldInfo, name: str) -> Any:
    return next((getattr(limit, name) for limit in field.metadata if hasattr(limit, name)), None)


def _help(field: FieldInfo) -> str:
    default = "" if field.default is None else f" [dim]{field.default}[/]"
    return f"{(field.description or '').replace('`', '')}{default}"
