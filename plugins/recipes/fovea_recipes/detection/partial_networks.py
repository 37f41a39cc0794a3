"""Recipes of PATNet and FasterNet on a folder of classes: same data, steps, teacher and seed for both."""

from __future__ import annotations

from typing import Any, ClassVar

from fovea_recipes.detection.class_recipe import StudentRecipe


class PATNetRecipe(StudentRecipe):
    """PATNet-T0, 2.2 million parameters, on a folder of your own."""

    name: ClassVar[str] = "patnet"
    weights: ClassVar[str] = "patnet"
    serves: ClassVar[str | None] = "patnet"

    def config(self) -> dict[str, Any]:
        return {"size": "t0", **super().config()}


class FasterNetRecipe(StudentRecipe):
    """FasterNet-T0, 2.6 million parameters, on a folder of your own."""

    name: ClassVar[str] = "fasternet"
    weights: ClassVar[str] = "fasternet"
    serves: ClassVar[str | None] = "fasternet"

    def config(self) -> dict[str, Any]:
        return {"size": "t0", **super().config()}
