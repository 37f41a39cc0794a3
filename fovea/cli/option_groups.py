"""Options that are declared elsewhere: by the fields of a dataclass, or of a request's wire type.

A parameter of a command whose type is a dataclass is a group: it stands for one option per field.
"""

import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_PANEL = "Model"

Command = TypeVar("Command", bound=Callable[..., None])


class CommandApp(typer.Typer):
    """An app whose commands may have groups of options."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Command], Command]:
        """Register a command; see `expand_options`."""
        register = super().command(name, **settings)

        def add(command: Command) -> Command:
            register(expand_options(command))
            return command

        return add


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter that is a group by the options of the group's fields; the command gets the group."""
    given = inspect.signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {each.name: each.annotation for each in given if dataclasses.is_dataclass(each.annotation)}
    parameters = [
        option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for each in given
        for option in (_read_fields(groups[each.name]) if each.name in groups else [each])
    ]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        command(**{name: group(**_take(values, group)) for name, group in groups.items()}, **values)

    return declare_parameters(wrapper, parameters)


def declare_parameters(command: Callable[..., None], parameters: Sequence[inspect.Parameter]) -> Callable[..., None]:
    """Give a command the parameters that typer shows: it reads order from the signature, types from annotations."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect's own protocol
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _take(values: dict[str, Any], group: Any) -> dict[str, Any]:
    return {field.name: values.pop(field.name) for field in dataclasses.fields(group) if field.name in values}


def _read_fields(group: Any) -> Iterator[inspect.Parameter]:
    types = get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        kind = inspect.Parameter.KEYWORD_ONLY
        yield inspect.Parameter(field.name, kind, default=default, annotation=types[field.name])


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
        given = {name: value for name in added if (value := values.pop(name)) not in (None, [])}
        options = {name: ",".join(value) if isinstance(value, list) else value for name, value in given.items()}
        command(**values, options=options)

    parameters = [parameter for parameter in own.values() if parameter.name != "options"] + list(added.values())
    return declare_parameters(wrapper, parameters)


def _parameters(kind: type[BaseModel], without: frozenset[str]) -> Iterator[inspect.Parameter]:
    for name, field in kind.model_fields.items():
        if name in without:
            continue
        flags = ("--result-format",) if name == "format" else ()  # --format is the form of the command's output
        limits = {"min": _bound(field, "ge"), "max": _bound(field, "le")}
        option = typer.Option(*flags, help=_help(field), show_default=False, rich_help_panel=_PANEL, **limits)
        annotation: Any = operator.getitem(cast("Any", Annotated), (_type(field) | None, option))
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _type(field: FieldInfo) -> Any:
    """The type of a field where the command line supports it, text otherwise, which a list may repeat; no null."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    kind = kinds[0] if len(kinds) == 1 and get_origin(field.annotation) in {Union, UnionType} else field.annotation
    if get_origin(kind) is tuple:
        return list[str]
    return kind if kind in {bool, int, float} or get_origin(kind) is Literal else str


def _bound(field: FieldInfo, name: str) -> Any:
    return next((getattr(limit, name) for limit in field.metadata if hasattr(limit, name)), None)


def _help(field: FieldInfo) -> str:
    shown = ", ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    default = "" if shown in (None, "") else f" [dim]{shown}[/]"
    return f"{(field.description or '').replace('`', '')}{default}"
