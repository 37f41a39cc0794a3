"""Training on what people labelled: their project becomes a folder, and `fovea train` runs on it as a process.

One run at a time. A run leaves its folder and its log; weights are in place only when it has measured them.
"""

import asyncio
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fovea.errors import Conflict, FoveaError, InvalidOption
from fovea_labelstudio.label_config import ControlTag, find_control
from fovea_labelstudio.label_studio import LabelStudio
from fovea_labelstudio.training_set import TrainingSet, pick_annotation
from shared import telemetry

RunStatus = Literal["idle", "exporting", "training", "finished", "failed"]


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """The model that a project's labels train: those of the tag that its task fits. Exports and logs go to `folder`."""

    task: str
    recipe: str
    name: str
    folder: Path
    max_pixels: int
    knobs: tuple[str, ...] = ()


@dataclass(slots=True)
class RunState:
    """How the last run stands: why it failed or what it made, and why tasks were left out, by task."""

    status: RunStatus = "idle"
    detail: str = ""
    pictures: int = 0
    left_out: dict[int, str] = field(default_factory=dict)


class TrainingRuns:
    """Runs of one model's training, one after the other."""

    def __init__(self, label_studio: LabelStudio, plan: TrainingPlan) -> None:
        self._label_studio, self._plan = label_studio, plan
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self.state = RunState()

    @property
    def is_running(self) -> bool:
        """Whether a run has begun and not ended."""
        return self._task is not None and not self._task.done()

    def start(self, project: int) -> None:
        """Begin a run on a project; Conflict if one is running."""
        if self.is_running:
            raise Conflict("A training is running already.", hint="Try again when it has ended.")
        self.state = RunState("exporting")
        self._task = asyncio.create_task(self._run(project))

    async def wait(self) -> RunState:
        """How the run that is going on ends."""
        if self._task is not None:
            await self._task
        return self.state

    async def stop(self) -> None:
        """End what runs; the next run goes on from its checkpoints."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, project: int) -> None:
        try:
            folder = await self._export(project)
            self.state.status = "training"
            code = await self._train(folder)
            if not code:
                served = f"{self._plan.name} is served: a running Fovea loads it within seconds."
                self.state.status, self.state.detail = "finished", served
                return
            detail = f"fovea train ended with {code}; {self._plan.folder}/project-{project}.log says why."
        except FoveaError as error:
            detail = error.detail
        except OSError as error:
            detail = f"The export can't be written ({error.strerror})."
        except Exception as error:  # noqa: BLE001  # a run that ends must not look as if it went on
            telemetry.log().error("training failed", project=project, reason=repr(error)[:200])
            detail = f"Label Studio's data can't be read ({type(error).__name__})."
        self.state.status, self.state.detail = "failed", detail

    async def _export(self, project: int) -> Path:
        """The folder of a project's labels, written anew."""
        plan = self._plan
        control = find_control(await self._label_studio.label_config(project), plan.task)
        folder = plan.folder / f"project-{project}"
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir(parents=True)
        data = TrainingSet(folder, control, plan.max_pixels)
        for task in await self._label_studio.export_tasks(project):
            await self._add(data, task, control)
        await asyncio.to_thread(data.close)
        self.state.pictures = data.pictures
        if not data.pictures:
            raise InvalidOption("The project has no labelled picture to train on.", field="project")
        return folder

    async def _add(self, data: TrainingSet, task: Mapping[str, Any], control: ControlTag) -> None:
        if (regions := pick_annotation(task)) is None:
            return
        number, data_of_task = int(task["id"]), task.get("data")
        address = data_of_task.get(control.field, "") if isinstance(data_of_task, dict) else ""
        try:
            picture = await self._label_studio.fetch_picture(str(address))
            if not await asyncio.to_thread(data.add, number, picture, regions):
                self.state.left_out[number] = "It has no label of this tag."
        except FoveaError as error:
            self.state.left_out[number] = error.detail

    async def _train(self, folder: Path) -> int:
        """Exit code of `fovea train`."""
        plan = self._plan
        words = ["train", plan.recipe, "--data", str(folder), "--name", plan.name]
        words += [word for knob in plan.knobs for word in ("--set", knob)]
        # A fresh folder of checkpoints: an older run's would go on with other labels.
        checkpoints = plan.folder / f"{folder.name}-checkpoints"
        await asyncio.to_thread(shutil.rmtree, checkpoints, ignore_errors=True)
        with (plan.folder / f"{folder.name}.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "fovea", *words, "--folder", str(checkpoints), stdout=log, stderr=log
            )
            return await self._process.wait()
