"""Modules that are imported when something of theirs is used: for large libraries that few requests need."""

import importlib
from typing import Any


class LazyModule:
    """A module by name, imported by the first look at one of its attributes."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        """The module's attribute."""
        return getattr(importlib.import_module(self._name), attribute)
