"""Registry of attention methods, found by scanning `methods` and plug-ins: a class with a `name` per file or folder."""

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import ValidationError

from fovea.errors import Fault, InvalidOption
from services.llm_longctx.methods.core.attention_method import AttentionMethod
from shared.registry.discovery import guard, plugin_rooms, scan
from shared.validation_errors import list_errors


@cache
def methods() -> Mapping[str, type[AttentionMethod]]:
    """Methods by name, in name order."""
    own = __name__.rpartition(".core.")[0]
    found: dict[str, type[AttentionMethod]] = {}
    for module in (module for package in (own, *plugin_rooms("llm-longctx")) for module in scan(package)):
        for cls in vars(module).values():
            if not inspect.isclass(cls) or not issubclass(cls, AttentionMethod) or cls.__module__ != module.__name__:
                continue
            if isinstance(vars(cls).get("name"), str) and found.setdefault(cls.name, cls) is not cls:
                with guard(cls.__module__):
                    raise Fault(f"{found[cls.name].__module__} has an attention method {cls.name!r}, too.")
    return dict(sorted(found.items()))


def method(name: str, **knobs: Any) -> AttentionMethod:
    """A method with its knobs set.

    Raises InvalidOption: no method of that name, no such knob, or a value out of range; `field` names it.
    """
    known = methods()
    if name not in known:
        detail = f"There is no attention method {name!r}; known are {', '.join(known)}."
        raise InvalidOption(detail, field="longctx.method")
    try:
        return known[name].model_validate(knobs)
    except ValidationError as error:
        first = list_errors(error)[0]
        knob = ".".join(map(str, first["loc"])) or name
        detail = f"{name} can't take {knob}={first.get('input')!r}: {first['msg']}."
        hint = f"Knobs of {name}: {', '.join(known[name].model_fields) or 'none'}."
        raise InvalidOption(detail, hint=hint, field=f"longctx.{knob}") from error
