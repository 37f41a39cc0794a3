"""Model list entry: one model of `GET /v1/models`, OpenAI's four fields, then ours; further facts of the card follow.

A task is any name: `KNOWN_TASKS` only says which come first where tasks are listed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, StringConstraints

from fovea.api.bounded_lists import ItemList

Task = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
"""Task of a model, as in its route `/v1/<task>`; any name will do."""

KNOWN_TASKS: Final = (
    "chat", "complete", "embed", "restore", "segment", "detect", "classify", "actions", "scanpath", "plan", "probe",
    "judge",
)  # fmt: skip
"""Tasks in the order in which they are listed; all others follow by name."""


class ModelEntry(BaseModel, extra="allow"):
    """A served model in OpenAI's form with the Card's facts as further fields."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "fovea"
    task: str
    service: str
    ready: bool


class ModelList(ItemList[ModelEntry]):
    """All models of all services; chat models first, the default chat model is `data[0]`."""


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


@dataclass(frozen=True, slots=True)
class HeadlineMetric:
    """One metric, measured here (`ours`) and published (`paper`); figures of synthetic data have no published one."""

    name: str
    ours: float | None
    paper: float | None
    data: str = ""

    @property
    def is_synthetic(self) -> bool:
        """Whether ours was measured on made data, which says little about real data."""
        return self.ours is not None and "synthetic" in self.data.lower()


def pick_headline(metrics: Sequence[Mapping[str, Any]]) -> HeadlineMetric | None:
    """Pick the headline of a card's metrics: the first with both numbers, else the first."""
    found = [HeadlineMetric(str(m["name"]), m.get("ours"), m.get("paper"), str(m.get("data", ""))) for m in metrics]
    alike = [HeadlineMetric(one.name, one.ours, None, one.data) if one.is_synthetic else one for one in found]
    return next((one for one in alike if one.ours is not None and one.paper is not None), next(iter(alike), None))
