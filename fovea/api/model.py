"""Model list entry: one model of `GET /v1/models`, OpenAI's four fields, then ours; further facts of the card follow.

A task is any name: `KNOWN_TASKS` only says which come first where tasks are listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

Task = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
"""Task of a model, as in its route `/v1/<task>`; any name will do."""

KNOWN_TASKS: Final = (
    "chat",
    "complete",
    "embed",
    "restore",
    "segment",
    "detect",
    "classify",
    "actions",
    "scanpath",
    "plan",
    "probe",
    "judge",
)
"""Tasks in the order in which they are listed; all others follow by name."""


class ModelEntry(BaseModel):
    """A served model in OpenAI's form with the Card's facts as further fields."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "fovea"
    task: str
    service: str
    ready: bool


class ModelList(BaseModel):
    """All models of all services; chat models first, the default chat model is `data[0]`."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


def sparsity_in_words(claim: Mapping[str, Any]) -> str:
    """A sparsity claim of a card in a line: what is left out, and what that was measured to be worth."""
    left_out = f"{claim['sparsity_global']:.1%} of {claim['kind'] or 'something'} left out by {claim['granularity']}"
    measured = claim.get("measured")
    speed = f"{measured['speedup']:.2f} × the speed of dense" if measured else "speed not measured"
    return f"{left_out}; {speed}"


def sort_tasks(tasks: Iterable[str]) -> list[str]:
    """Sort tasks: the known ones in their order, then all others by name; each once."""
    rank = {task: place for place, task in enumerate(KNOWN_TASKS)}
    return sorted(set(tasks), key=lambda task: (rank.get(task, len(rank)), task))


def title_task(task: str) -> str:
    """Make a title of a task's name: `count-cells` becomes `Count cells`."""
    return task.replace("-", " ").replace("_", " ").strip().capitalize()
