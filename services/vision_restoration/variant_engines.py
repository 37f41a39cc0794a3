"""VariantEngines: the engines of one restorer's variants, each opened and timed when it is first asked for.

Knows weights, graphs and how fast they run; knows no picture.
"""

import threading
import time
from dataclasses import dataclass, replace

import numpy as np

from services.vision_restoration.variant import Variant
from services.vision_restoration.weights_loading import build_artifacts, bytes_per_pixel
from shared.engines import open_engine
from shared.export.artifacts import ExportedForms, check_tensors, refine_card
from shared.registry import Card, Engine, LoadContext
from shared.registry.weights import Weights

_PROBE_SIDE = 128
"""Side of the picture by which the pace of a network is first measured."""


@dataclass(slots=True)
class TimedEngine:
    """An engine, the bytes that it takes per pixel of a window, and its pace in seconds per pixel, ever renewed."""

    engine: Engine
    bytes_per_pixel: int
    pace: float


class VariantEngines:
    """Engines by variant.

    Attributes:
        default: The variant that the weights were trained as.
    """

    def __init__(self, name: str, weights: Weights, context: LoadContext) -> None:
        self.default: Variant = weights.manifest.network.config.get("variant", "released")
        self._name, self._weights, self._context = name, weights, context
        self._opening = threading.Lock()
        self._opened: dict[Variant, TimedEngine] = {}

    def open(self, variant: Variant) -> TimedEngine:
        """The engine of a variant, opened and timed once.

        Raises NotReady: no engine opens here, or it holds another network.
        """
        with self._opening:
            if variant not in self._opened:
                artifacts = self._artifacts(variant)
                engine = open_engine(self._context, artifacts.forms(self._remote_name(variant), self._context.objects))
                check_tensors(engine, artifacts)
                self._opened[variant] = TimedEngine(
                    engine, bytes_per_pixel(self._weights, engine.name), measure_pace(engine)
                )
            return self._opened[variant]

    def describe(self, card: Card) -> Card:
        """The Card with the facts of the weights and of the default variant's engine."""
        refined = refine_card(card, self._artifacts(self.default), self.open(self.default).engine)
        return refined.model_copy(update={"variant": self.default})

    def _remote_name(self, variant: Variant) -> str:
        """Name of the variant on another server: the default one, which `fovea export triton` writes, as the model."""
        return self._name if variant == self.default else f"{self._name}-{variant}"

    def _artifacts(self, variant: Variant) -> ExportedForms:
        return replace(build_artifacts(self._weights, variant, self._context.cache), given=self._context.graphs)

    def close(self) -> None:
        """Free the graphs of all variants."""
        for opened in self._opened.values():
            opened.engine.close()


def measure_pace(engine: Engine) -> float:
    """Seconds per pixel, by the second of two runs: the first one sets things up."""
    feed = {engine.inputs[0].name: np.zeros((1, 3, _PROBE_SIDE, _PROBE_SIDE), np.float32)}
    engine.run(feed)
    begun = time.perf_counter()
    engine.run(feed)
    return (time.perf_counter() - begun) / _PROBE_SIDE**2
