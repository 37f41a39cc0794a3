"""Parity of a network and its ONNX graph, measured at export. Knows neither."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Parity:
    """How far ONNX Runtime is from torch, over all outputs and probes.

    Attributes:
        max_difference: Largest absolute difference.
        max_value: Largest absolute value that torch gave, for scale.
        shapes: Input shapes that were compared, one tuple per probe.
    """

    max_difference: float
    max_value: float
    shapes: tuple[tuple[tuple[int, ...], ...], ...]
