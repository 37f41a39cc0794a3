"""Drawable answers: an answer may carry what it is drawn from, so that a picture of it needs no second run."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, PrivateAttr


class Drawable(BaseModel):
    """An answer of a vision model. The pixels that it is drawn from stay in the process."""

    _scene: Any = PrivateAttr(default=None)

    @property
    def scene(self) -> Any:
        """Source of the drawing, where a form other than JSON was asked for; else None."""
        return self._scene

    def attach(self, scene: object) -> None:
        """Carry what the answer is drawn from."""
        self._scene = scene
