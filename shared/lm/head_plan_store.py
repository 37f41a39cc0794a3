"""Store of head plans: those of the package and those of a tenant, found by name or digest, also while serving.

A plan that an experiment stores is available to the tenant's next request, on every replica and without a restart.
Knows objects and files; knows no method.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from fovea.errors import Conflict, InvalidOption
from shared.lm.head_plan import HeadPlan
from shared.storage import ObjectStore

PLAN_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
"""Pattern of plan names."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


class HeadPlanStore(Mapping[str, HeadPlan]):
    """Head plans of one model by name, also found by digest; a tenant's own win over those of the package.

    Objects are read at every access, so the mapping is never stale. Thread-safe. Plans of the package are in the folder
    `bundled`, as `heads/<model>/<name>.json`; `objects` is the store of all tenants, None where nothing is stored.
    """

    def __init__(
        self, model: str, bundled: Path | None = None, objects: ObjectStore | None = None, tenant: str = "local"
    ) -> None:
        self._model, self._bundled_root, self._objects = model, bundled, objects
        self._bundled = None if bundled is None else bundled / "heads" / _folder_name(model)
        self._stored = None if objects is None else _plans_of(objects.of_tenant(tenant), model)

    def of_tenant(self, tenant: str) -> HeadPlanStore:
        """The same store for another tenant."""
        return HeadPlanStore(self._model, self._bundled_root, self._objects, tenant)

    def __getitem__(self, name: str) -> HeadPlan:
        """Return the plan of a name or digest; `KeyError` if there is none, `Malformed` if the file is not a plan."""
        if re.fullmatch(PLAN_NAME, name):
            found = self._find_stored(name) or self._find_bundled(name)
            if found is not None:
                return found
        if _DIGEST.fullmatch(name):
            for known in self:
                if known != name and (plan := self[known]).digest == name:
                    return plan
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        """Names, in order."""
        files = [] if self._bundled is None else [file.name for file in self._bundled.glob("*.json")]
        stored = [] if self._stored is None else self._stored.list_names()
        return iter(sorted({name.removesuffix(".json") for name in (*files, *stored)}))

    def __len__(self) -> int:
        """Number of names."""
        return len(list(iter(self)))

    def _find_stored(self, name: str) -> HeadPlan | None:
        content = None if self._stored is None else self._stored.get(f"{name}.json")
        return None if content is None else HeadPlan.parse(content)

    def _find_bundled(self, name: str) -> HeadPlan | None:
        file = None if self._bundled is None else self._bundled / f"{name}.json"
        return None if file is None or not file.is_file() else HeadPlan.read(file)


def save_plan(plan: HeadPlan, objects: ObjectStore, model: str, name: str) -> None:
    """Store a plan for a model under a name, in a tenant's objects; storing the same plan again changes nothing.

    Raises InvalidOption if the name can't be a plan's, Conflict if another plan has that name.
    """
    if not re.fullmatch(PLAN_NAME, name):
        detail = f"A head plan can't be called {name!r}."
        raise InvalidOption(detail, hint="Use small letters, digits, dots and dashes.", field="name")
    plans = _plans_of(objects, model)
    if not plans.create(f"{name}.json", plan.text().encode()):
        other = HeadPlan.parse(plans.get(f"{name}.json") or b"").digest
        if other != plan.digest:
            detail = f"{model} has another head plan called {name!r} ({other[:12]}…)."
            raise Conflict(detail, hint="Choose another name.", field="name")


def _plans_of(objects: ObjectStore, model: str) -> ObjectStore:
    return objects.under("head-plans", _folder_name(model))


def _folder_name(model: str) -> str:
    """Models are named after files, which may be called anything."""
    return re.sub(r"[^a-z0-9._-]+", "-", model.lower()).strip("-._") or "local"
