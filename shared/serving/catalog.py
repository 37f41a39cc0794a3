"""Model catalog of a service: models by name and task, their states, and everything that is known about each."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fovea import plugins
from fovea.api.model import ModelEntry
from fovea.errors import InvalidOption, NotFound, NotReady
from shared.registry import Card, Servable
from shared.serving.batching import Batcher, BatchOptions
from shared.settings import Settings

State = Literal["waiting", "on_demand", "loading", "ready", "failed", "not_installed", "unloaded"]

_STATE_TEXTS: Mapping[State, str] = {
    "waiting": "not loaded yet",
    "on_demand": "loaded by its first request; it is being loaded now",
    "loading": "still loading",
    "failed": "not available",
    "not_installed": "not installed",
    "unloaded": "unloaded",
    "ready": "ready",
}


@dataclass(eq=False, slots=True)
class ModelSlot:
    """One model's place in the host."""

    kind: type[Servable[Any, Any]]
    state: State = "waiting"
    reason: str | None = None
    servable: Servable[Any, Any] | None = None
    batcher: Batcher[Any, Any] | None = None

    @property
    def card(self) -> Card:
        """The Card of the loaded weights, or of the class before they are loaded."""
        return self.kind.card if self.servable is None else self.servable.card


class Catalog:
    """The models of one service."""

    def __init__(self, service: str, servables: Mapping[str, type[Servable[Any, Any]]], settings: Settings) -> None:
        self.service = service
        self.settings = settings
        self._slots = {name: ModelSlot(kind) for name, kind in servables.items()}
        self._created = int(time.time())
        self._leave_for_demand()

    @property
    def slots(self) -> tuple[ModelSlot, ...]:
        """All models' slots."""
        return tuple(self._slots.values())

    def slot(self, name: str) -> ModelSlot:
        """A model's slot, loaded or not; `NotFound` lists the known."""
        return self._slots.get(name) or self._slots[self.resolve(name)]

    def find_loaded(self, name: str, version: str = "") -> tuple[Servable[Any, Any], Batcher[Any, Any]]:
        """A loaded model. Raises NotFound: no such model or version; NotReady: not loaded; the detail says why."""
        slot = self.slot(name)
        if version and version != slot.card.version:
            raise NotFound(f"The model {name!r} has version {slot.card.version}, not {version!r}.", field="version")
        if slot.servable is None or slot.batcher is None:
            why = f": {slot.reason.rstrip('.')}" if slot.reason else ""
            wait_s = 2 if slot.state in {"waiting", "on_demand", "loading"} else None
            raise NotReady(f"The model {name!r} is {_STATE_TEXTS[slot.state]}{why}.", retry_after=wait_s, field="model")
        return slot.servable, slot.batcher

    def servable_type(self, name: str) -> type[Servable[Any, Any]]:
        """The class of a model, loaded or not."""
        return self.slot(name).kind

    def names(self) -> list[str]:
        """Names of all models."""
        return list(self._slots)

    def tasks(self) -> dict[str, list[str]]:
        """Task → names of the models that do it, the default first."""
        found: dict[str, list[str]] = {}
        for name in sorted(self._slots, key=self._rank):
            found.setdefault(self._slots[name].kind.card.task, []).append(name)
        return found

    def resolve(self, name: str | None, task: str | None = None) -> str:
        """The name itself, or the default of a task.

        Raises NotFound: there is none, and the detail lists those there are; InvalidOption: it does another task.
        """
        fitting = [model for kind, models in self.tasks().items() if task in {None, kind} for model in models]
        if name is None and fitting:
            return fitting[0]
        if name is None or name not in self._slots:
            if name and (error := plugins.explain_missing("models", name, f"The model {name!r}", "model")):
                raise error
            known = ", ".join(fitting) or "none"
            missing = f"no model {name!r}" if name is not None else f"no model for {task or 'anything'}"
            hint = f"Left out, see `fovea doctor`: {', '.join(plugins.BROKEN)}." if plugins.BROKEN else None
            raise NotFound(f"There is {missing} here; known are: {known}.", hint=hint, field="model")
        if name not in fitting:
            its_task = self._slots[name].kind.card.task
            hint = f"Choose one of {', '.join(fitting)}." if fitting else None
            raise InvalidOption(f"The model {name!r} does {its_task}, not {task}.", field="model", hint=hint)
        return name

    def find_variant(self, name: str, tenant: str) -> str | None:
        """The loaded model that answers a tenant under this further name, if any. Blocks."""
        for model, slot in self._slots.items():
            if slot.servable is not None and slot.servable.variants(tenant, name):
                return model
        return None

    def list_variants(self, tenant: str) -> list[ModelEntry]:
        """An entry per further name under which models answer a tenant; `parent` is the model. Blocks."""
        found = []
        for model, slot in self._slots.items():
            for one in slot.servable.variants(tenant) if slot.servable is not None else ():
                facts = {"id": one.name, "created": one.created, "parent": model, "root": model}
                found.append(self._entry(model, slot).model_copy(update=facts))
        return found

    def missing(self) -> dict[str, str]:
        """Models that should be loaded and are not, with the reason."""
        return {
            name: slot.reason or slot.state
            for name, slot in self._slots.items()
            if slot.state not in {"ready", "on_demand", "not_installed", "unloaded"}
        }

    @property
    def settled(self) -> bool:
        """Whether requests can be answered: nothing is still loading, and not every model failed to."""
        states = {slot.state for slot in self.slots}
        return not states & {"waiting", "loading"} and states != {"failed"}

    def entries(self) -> list[ModelEntry]:
        """One entry per model: OpenAI's fields and the Card's facts."""
        return [self._entry(name, self._slots[name]) for names in self.tasks().values() for name in names]

    def card(self, name: str) -> dict[str, Any]:
        """A model's whole Card, its tensors, the limits in force and its schemas."""
        slot = self.slot(name)
        engine = slot.servable.engine if slot.servable else None
        return {
            **self._entry(name, slot).model_dump(mode="json"),
            **slot.card.model_dump(mode="json"),
            "details": slot.servable.details() if slot.servable else {},
            "inputs": [spec.model_dump(mode="json") for spec in (engine.inputs if engine else ())],
            "outputs": [spec.model_dump(mode="json") for spec in (engine.outputs if engine else ())],
            "limits": self._limits(slot),
            "media_types": ["application/json", *slot.kind.media_types()],
            "schema": slot.kind.In.model_json_schema(),
            "answer_schema": slot.kind.Out.model_json_schema(mode="serialization"),
        }

    def batch_options(self, slot: ModelSlot) -> BatchOptions:
        """How a model batches: jobs run alone, and a streaming model schedules its calls for itself."""
        settings, mode = self.settings, slot.kind.mode
        most, wait_s = settings.max_batch_size, settings.max_batch_delay_ms / 1000
        size = min(most, slot.card.limits.max_batch or most) if mode == "sync" else 1
        return BatchOptions(size, wait_s, settings.max_queue_size, threads=most if mode == "stream" else 1)

    def _leave_for_demand(self) -> None:
        """Leave models to their first request that may wait for it and that `preload` does not name."""
        names = {name.strip() for name in self.settings.preload.split(",")}
        if "all" in names or not self._slots:
            return
        if "default" in names:
            names.add(next(iter(self.tasks().values()))[0])
        for name, slot in self._slots.items():
            if slot.kind.on_demand and name not in names and slot.kind.is_installed():
                slot.state = "on_demand"

    def _rank(self, name: str) -> tuple[bool, bool, bool, bool]:
        """Order within a task: the configured one, loaded before failed, the core's before plug-ins', real weights."""
        slot = self._slots[name]
        is_missing = slot.state in {"failed", "not_installed"}
        is_added = not slot.kind.__module__.startswith("services.")
        return (not name.startswith(self.settings.llm_model), is_missing, is_added, slot.card.weights is None)

    def _entry(self, name: str, slot: ModelSlot) -> ModelEntry:
        facts = slot.card.model_dump(mode="json", exclude={"name", "task", "example", "limits"})
        return ModelEntry(
            id=name, created=self._created, task=slot.card.task, service=self.service, state=slot.state,
            ready=slot.state in {"ready", "on_demand"}, reason=slot.reason, mode=slot.kind.mode, **facts,
        )  # fmt: skip

    def _limits(self, slot: ModelSlot) -> dict[str, Any]:
        settings, own = self.settings, slot.card.limits
        return {
            **own.model_dump(mode="json"), "max_body_bytes": settings.max_body_bytes,
            "max_pixels": min(settings.max_pixels, own.max_pixels or settings.max_pixels),
            "max_side": min(settings.max_side, own.max_side or settings.max_side),
            "max_images": settings.max_images, "micro_batch": self.batch_options(slot).size,
            "queue": settings.max_queue_size, "deadline_s": settings.request_timeout_s,
        }  # fmt: skip
