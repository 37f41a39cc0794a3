"""Deconstruction study: models trained with simpler mixers than attention."""

from services.interpretability.experiments.deconstruction_study.run import DeconstructionStudy
from services.interpretability.experiments.deconstruction_study.spec import DeconstructionStudySpec

__all__ = ["DeconstructionStudy", "DeconstructionStudySpec"]
