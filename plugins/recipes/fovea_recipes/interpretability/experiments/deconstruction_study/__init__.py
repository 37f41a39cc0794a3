"""Deconstruction study: models trained with simpler mixers than attention."""

from fovea_recipes.interpretability.experiments.deconstruction_study.run import DeconstructionStudy
from fovea_recipes.interpretability.experiments.deconstruction_study.spec import DeconstructionStudySpec

__all__ = ["DeconstructionStudy", "DeconstructionStudySpec"]
