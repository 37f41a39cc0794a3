"""Drawable answers: an answer may carry what it is drawn from, so that a picture of it needs no second run."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, PrivateAttr


class Drawable(BaseModel):
    """An answer of a vision model. What it is drawn from stays in the process: it is no field and never on the wire."""

    _scene: Any = PrivateAttr(default=None)

    @property
    def scene(self) -> Any:
        """What the answer is drawn from, where a form other than JSON was asked for; else None."""
        return self._scene

    def attach(self, scene: object) -> None:
        """Carry what the answer is drawn from."""
        self._scene = scene
