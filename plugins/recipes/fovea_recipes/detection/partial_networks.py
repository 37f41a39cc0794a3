"""Recipes of PATNet and FasterNet on a folder of classes: same data, steps, teacher and seed for both."""

from typing import Any

from fovea_recipes.detection.class_recipe import StudentRecipe


class PATNetRecipe(StudentRecipe, name="patnet", weights="patnet", serves="patnet"):
    """PATNet-T0, 2.2 million parameters, on a folder of your own."""

    def config(self) -> dict[str, Any]:
        return {"size": "t0", **super().config()}


class FasterNetRecipe(StudentRecipe, name="fasternet", weights="fasternet", serves="fasternet"):
    """FasterNet-T0, 2.6 million parameters, on a folder of your own."""

    def config(self) -> dict[str, Any]:
        return {"size": "t0", **super().config()}
