"""Groups of options: a parameter of a command whose type is a dataclass stands for one option per field."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, get_type_hints

import typer

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
        made = {name: group(**_take(values, group)) for name, group in groups.items()}
        command(**values, **made)

    return declare_parameters(wrapper, parameters)


def declare_parameters(command: Callable[..., None], parameters: Sequence[inspect.Parameter]) -> Callable[..., None]:
    """Give a command the parameters that typer shows: it reads order from the signature, types from annotations."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect's own protocol
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _take(values: dict[str, Any], group: Any) -> dict[str, Any]:
    """Take the values of a group's fields out of those that were given."""
    return {field.name: values.pop(field.name) for field in dataclasses.fields(group) if field.name in values}


def _read_fields(group: Any) -> Iterator[inspect.Parameter]:
    types = get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[field.name]
        )
