"""FastAPI's validation of bodies, with few errors: by itself it makes a dictionary of each one."""

from __future__ import annotations

from typing import Any

from fastapi._compat.v2 import ModelField, _regenerate_error_with_loc
from pydantic import ValidationError

from shared.validation_errors import list_errors


def bound_validation() -> None:
    """Have FastAPI list few errors of a body, in this whole process; may be called again."""
    patched: Any = ModelField
    patched.validate = _validate


def _validate(
    self: ModelField, value: Any, _values: dict[str, Any] | None = None, *, loc: tuple[int | str, ...] = ()
) -> tuple[Any, list[dict[str, Any]]]:
    """As `ModelField.validate`, but for the errors."""
    try:
        return self._type_adapter.validate_python(value, from_attributes=True), []
    except ValidationError as error:
        return None, _regenerate_error_with_loc(errors=list_errors(error), loc_prefix=loc)
