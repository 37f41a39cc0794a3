"""Recipes of BMN, without and with class-semantics attention, on recordings of skeletons: measured, never shipped."""

from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr

from fovea_recipes.detection.bmn.data import Split, Videos
from fovea_recipes.detection.bmn.recipe import BmnCsaDemo, BmnDemo
from fovea_recipes.detection.skeletons import CHANNELS, Recording, recordings, windows
from fovea_recipes.training.recipe import Schedule


class _Skeletons(BmnDemo):
    """Data of both: persons to train on, persons to measure on."""

    schedule: Schedule = Schedule(steps=600, batch=8, rate=1e-3, floor=2e-5, decay=1e-3, ema=0.99, validate_every=600)
    data: Path = Field(description="UTKinect-Action3D's joints_*.txt and actionLabel.txt.")
    held_out: tuple[str, ...] = Field(("s05", "s06"), description="Persons that are only measured.")
    length: int = Field(64, ge=8, description="Cells of a window.")
    train: int = Field(800, ge=1, description="Windows drawn to train on.")

    _names: tuple[str, ...] = PrivateAttr(())
    _known: list[Recording] = PrivateAttr(default_factory=list)

    def config(self) -> dict[str, Any]:
        return {"features": CHANNELS, "length": self.length, "hidden": self.hidden}

    def prepare(self, cache: Path) -> str:
        self._known, self._names = recordings(self.data)
        super().prepare(cache)
        return f"train:{self.videos('train').digest} held-out:{self.videos('test').digest}"

    def videos(self, split: Split) -> Videos:
        if split not in self._data:
            mine = [each for each in self._known if (each.person in self.held_out) == (split == "test")]
            teachers = [each for each in self._known if each.person not in self.held_out]
            count, seed = {"train": (self.train, self.seed), "valid": (16, self.seed + 1), "test": (0, 0)}[split]
            self._data[split] = windows(mine, teachers, count, self.length, len(self._names), seed)
        return self._data[split]

    def facts(self) -> dict[str, str]:
        return {
            "data": f"UTKinect-Action3D, {len(self._known)} recordings, {len(self.videos('test').features)} held-out "
            f"windows of {', '.join(self.held_out)}",
            "departures": "skeletons for video features; cosine schedule and averaged weights (EMA)",
        }


class BmnSkeletons(_Skeletons, name="bmn-skeletons", weights="bmn-skeletons", builds="bmn"):
    """BMN on skeletons (UTKinect-Action3D)."""


class BmnCsaSkeletons(_Skeletons, BmnCsaDemo, name="bmn-csa-skeletons", weights="bmn-csa-skeletons", builds="bmn-csa"):
    """BMN with class-semantics attention on the same skeletons."""

    def config(self) -> dict[str, Any]:
        return {**super().config(), "semantics": len(self._names), "channel": self.channel, "time": self.time}
