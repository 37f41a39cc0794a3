"""Groups of options: a parameter of a command whose type is a dataclass stands for one option per field."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints


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

    # typer reads both: the order from the signature, the types from the annotations.
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect's own protocol
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


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
