"""Fields of a request against a pydantic model: its errors as few facts, and its fields as those of a query.

A body of a million wrong values is one sentence, and not a million dictionaries.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from fovea.errors import InvalidOption

Model = TypeVar("Model", bound=BaseModel)

MAX_ERRORS: Final = 100
"""Errors that are looked at; pydantic makes a dictionary of each, which takes microseconds and a kilobyte."""


def list_errors(error: ValidationError) -> list[Any]:
    """The errors as pydantic lists them, or a single one that counts them where there are many."""
    count = error.error_count()
    if count <= MAX_ERRORS:
        return list(error.errors(include_url=False))
    return [{"type": "many", "loc": ("body",), "msg": f"{count:,} values are not valid", "input": None}]


def parse_fields(kind: type[Model], values: Mapping[str, Any]) -> Model:
    """Values as a model. Raises InvalidOption: one of them is not valid; it names the first."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = list_errors(error)[0]
        field = ".".join(map(str, first["loc"])) or "body"
        raise InvalidOption(f"{field}: {first['msg']}.", field=field) from error


def describe_query(options: type[BaseModel]) -> list[dict[str, Any]]:
    """The fields of a model as parameters of a query."""
    return [
        {"name": name, "in": "query", "required": False, "schema": prop, "description": prop.get("description", "")}
        for name, prop in options.model_json_schema()["properties"].items()
    ]
