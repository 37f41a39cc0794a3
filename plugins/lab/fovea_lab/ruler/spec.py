"""Options of a RULER-form evaluation."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from fovea.api.longctx import LongctxOptions
from fovea.errors import InvalidOption
from fovea_lab.ruler.samples.task import OFFLINE, TASKS

MAX_SAMPLES = 500
Share = Annotated[float, Field(gt=0, le=1)]


class RulerSpec(BaseModel):
    """What to evaluate."""

    model: str | None = Field(None, description="Name of the model; left out, the default one.")
    methods: list[LongctxOptions] = Field(
        default_factory=lambda: [LongctxOptions(method="snapkv")],
        max_length=40,
        description="Methods with their knobs; `label` names a variant.",
    )
    budgets: list[Share] = Field(
        [0.5, 0.25], max_length=8, description="Bytes as shares of what dense holds; methods that evict are fitted."
    )
    lengths: list[Annotated[int, Field(ge=256)]] = Field([1024], min_length=1, max_length=8)
    tasks: list[str] = Field(
        ["niah_single_1", "niah_single_2", "niah_multivalue", "fwe"],
        min_length=1,
        max_length=13,
        description="Names; `all` that need no file; or `informative`, those of all in which dense scores enough.",
    )
    n: int = Field(10, ge=1, le=MAX_SAMPLES, description="Samples per task and length.")
    questions: int = Field(1, ge=1, le=10, description="Questions per context, where a task has several answers.")
    protocol: Literal["agnostic", "aware", "both"] = Field(
        "agnostic", description="Whether a method compresses before it knows the question (agnostic) or with it."
    )
    max_answer: int | None = Field(None, ge=1, le=128, description="Cut answers shorter than the tasks do.")
    seed: int = Field(42, ge=0)

    def task_names(self) -> list[str]:
        """Tasks by name, in the order of reports; InvalidOption if there is no such task."""
        wanted = {name for given in self.tasks for name in (OFFLINE if given in {"all", "informative"} else (given,))}
        if unknown := sorted(wanted - TASKS.keys()):
            detail = f"There is no RULER-form task {unknown[0]!r}; known are {', '.join(TASKS)}, all, informative."
            raise InvalidOption(detail, field="tasks")
        return [name for name in TASKS if name in wanted]

    @property
    def protocols(self) -> tuple[Literal["agnostic", "aware"], ...]:
        """Which protocols are run."""
        return ("agnostic", "aware") if self.protocol == "both" else (self.protocol,)
