"""Scan for forms: subclasses of a base that a package and plug-ins have, a file each."""

from functools import lru_cache
from inspect import isabstract
from typing import TypeVar

from shared.registry.discovery import plugin_rooms, scan

T = TypeVar("T")


@lru_cache(maxsize=8)
def scan_forms(package: str, base: type[T]) -> tuple[type[T], ...]:
    """The subclasses of `base` in the modules of a package, by their files, then those of plug-ins."""
    return tuple(
        one
        for room in (package, *plugin_rooms("llm-longctx"))
        for module in scan(room)
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, base) and one.__module__ == module.__name__ and not isabstract(one)
    )
