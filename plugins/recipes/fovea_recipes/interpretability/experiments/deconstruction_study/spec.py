"""Spec of the deconstruction study: which mixers are trained, in which layout, how long, how large and on what."""

from typing import Literal, NamedTuple

from pydantic import BaseModel, Field

from fovea_memory.mixers.deconstructed.mixers import Variant
from services.interpretability.core.experiment import Spec

Layout = Literal["uniform", "hybrid"]

LAYOUTS: tuple[Layout, ...] = ("uniform", "hybrid")


class ModelSize(BaseModel, frozen=True, extra="forbid"):
    """Size of the models, and of a training step."""

    width: int = Field(96, ge=8, le=1024, description="D.")
    layers: int = Field(4, ge=2, le=24, description="Layers; hybrids have the variant in the first, third, fifth …")
    heads: int = Field(4, ge=1, le=32, description="Heads; D / heads must be even.")
    context: int = Field(256, ge=16, le=2048, description="Bytes of a window.")
    batch: int = Field(16, ge=1, le=256, description="Windows of a step.")


class MixerCell(NamedTuple):
    """One run of the study: a mixer, its layout and a seed."""

    variant: Variant
    layout: Layout
    seed: int

    @property
    def name(self) -> str:
        """Its name in tables and charts, without its seed."""
        return "standard" if self.variant == "standard" else f"{self.layout} {self.variant}"


class DeconstructionStudySpec(Spec):
    """Mixers, layouts, seeds, steps, size and data of the study."""

    variants: list[Variant] = Field(
        ["standard", "nonapproximate", "mlp"],
        min_length=1,
        max_length=7,
        description="standard, mlp, approximate, nonapproximate, random_qk, fixed_qk, static_qk. standard is always "
        "trained: the others are compared with it.",
    )
    layouts: list[Layout] = Field(
        ["uniform", "hybrid"],
        min_length=1,
        max_length=2,
        description="uniform: in all layers; hybrid: in every other one, with standard attention between.",
    )
    seeds: list[int] = Field([1], min_length=1, max_length=10, description="A run per seed; spread is over them.")
    steps: int = Field(2000, ge=1, le=100_000, description="Steps of AdamW of each run.")
    size: ModelSize = Field(ModelSize(), description="How large the models are.")
    data: Literal["library", "text"] = Field("library", description="Python's own text, or the `text` that is sent.")
    text: str | None = Field(None, max_length=5_000_000, description="For data=text: what to learn and to test on.")
