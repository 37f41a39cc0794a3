"""Spec of the circuits experiment: the task, the patching method, the thresholds and the controls."""

from typing import Literal

from pydantic import Field

from services.interpretability.core.experiment import Spec

Head = tuple[int, int]
"""(layer, head)."""

Receivers = Literal["final"] | list[tuple[int, str, int]]
"""The final residual stream, or (layer, `q`, `k` or `v`, head) each."""

PAIRS = "\n".join(
    f'{{"clean": "{key}{a} {key}", "corrupt": "{key}{b} {key}", "correct": "{a}", "wrong": "{b}"}}'
    for key, a, b in (("kqzwx", "m", "d"), ("hjvbt", "p", "s"), ("wgfyc", "r", "n"))
)
"""A task for the tiny model: what followed these letters before?"""


class TaskSpec(Spec):
    """The prompts of a task, each with a counterfactual."""

    task: Literal["ioi", "colored-objects", "own"] = Field("ioi", description="`own` takes `pairs`.")
    pairs: str | None = Field(
        None, max_length=1_000_000, description="JSON lines of clean, corrupt, correct, wrong, for the task `own`."
    )
    prompts: int = Field(16, ge=1, le=1000, description="Prompts of ioi and colored-objects.")
    counterfactual: Literal["flip", "abc"] = Field("flip", description="Of ioi: names exchanged, or unrelated ones.")

    @property
    def unread(self) -> list[str]:
        """A warning where `pairs` are given to a task that has prompts of its own."""
        told = f"pairs were not read: they belong to the task own, and this is {self.task}."
        return [told] if self.pairs and self.task != "own" else []


class CircuitsSpec(TaskSpec):
    """Task, patching method, thresholds and controls."""

    method: Literal["path", "activation", "attribution"] = Field("path", description="How effects are measured.")
    receivers: list[tuple[int, Literal["q", "k", "v"], int]] = Field(
        default_factory=list, max_length=512, description="[layer, q|k|v, head]; left out, the final residual stream."
    )
    positions: Literal["all", "end"] = Field("end", description="Where heads are corrupted, and received.")
    freeze_mlps: bool = Field(False, description="Only direct paths: MLP outputs stay clean.")
    stages: int = Field(1, ge=1, le=4, description="Go on to the q of what was found, its v, and its k.")
    fraction: float = Field(0.02, gt=0, le=1, description="Share of all heads that a stage keeps.")
    knockout: int = Field(5, ge=0, le=200, description="Number of top heads to zero, compared with random ones.")
    controls: int = Field(10, ge=10, le=100, description="Random draws of as many heads.")
    override: list[list[int]] = Field(
        default_factory=list,
        max_length=64,
        description="colored-objects: these [layer, head] look at the two wrong colours at the last position.",
    )
