"""Variable chains: the assignments of a text, and who ends up with a value."""

from __future__ import annotations

import re

__all__ = ["resolve"]

_ASSIGNMENT = re.compile(r"VAR\s+([A-Za-z_]\w*)\s*=\s*(?:VAR\s+([A-Za-z_]\w*)|(\d+)\b)")


def resolve(text: str, value: str) -> list[str]:
    """Variables that hold `value` in the end, in order of first assignment; assignments are carried out one by one."""
    held: dict[str, str | None] = {}
    for name, other, number in _ASSIGNMENT.findall(text):
        held[name] = held.get(other) if other else number
    return [name for name, number in held.items() if number == str(value)]
