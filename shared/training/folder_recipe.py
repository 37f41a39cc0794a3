"""A Recipe whose data is a folder that the user names: splits, checks and half precision are the same for all.

Knows pictures and splits; the label formats are read by the recipes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr
from torch import Tensor

from shared.errors import InvalidOption
from shared.training.data.splits import held_out
from shared.training.data.survey import FileProblem, Survey
from shared.training.recipe import Recipe

__all__ = ["FolderRecipe", "epoch"]


class FolderRecipe(Recipe):
    """What recipes on a folder of your own share; `fovea train RECIPE --data DIR` sets `data`."""

    data: Path = Field(description="The folder of the data set.")
    held_out: str = Field("", description="Pattern of the names of pictures to measure on.")
    group_by: str = Field("", description="Pattern of what belongs together in a file's name, and is never split.")
    share: float = Field(0.15, gt=0, lt=1, description="Share held out, where neither folders nor a list say which.")
    half: bool | None = Field(None, description="bfloat16; by default where the processor computes with it.")

    _survey: Survey | None = PrivateAttr(None)
    _digest: str | None = PrivateAttr(None)
    _intervals: dict[str, tuple[float, float]] = PrivateAttr(default_factory=dict)

    @abstractmethod
    def gather(self) -> str:
        """Find pictures and labels, look at them, split them and decode them; return the digest of the data."""

    def prepare(self, cache: Path) -> str:
        """`gather`, once."""
        if self._digest is None:
            self._digest = self.gather()
        return self._digest

    def intervals(self) -> dict[str, tuple[float, float]]:
        """By bootstrap over the pictures that were measured."""
        return self._intervals

    def survey(self) -> Survey | None:
        """What `prepare` found in the folder; None before it."""
        return self._survey

    def is_held_out(self, paths: Sequence[Path]) -> NDArray[np.bool_]:
        """Whether each picture (n,) is measured on, and never trained on."""
        return held_out(
            paths, self.data, pattern=self.held_out, group_by=self.group_by, share=self.share, seed=self.seed
        )

    def autocast(self, like: Tensor) -> torch.autocast:
        """The context in which the network runs in training."""
        return torch.autocast(
            like.device.type, torch.bfloat16, enabled=_has_bfloat16(like) if self.half is None else self.half
        )

    def require(self, count: int, least: int, what: str, problems: Sequence[FileProblem] = ()) -> None:
        """See that there is enough to train on.

        Raises:
            InvalidOption: There is not; the first problem says why.
        """
        if count >= least:
            return
        why = f" {problems[0].path.name} {problems[0].kind}." if problems else ""
        detail = f"{self.data} has {count} {what}; {self.name} needs {least} or more.{why}"
        raise InvalidOption(detail, hint="`fovea train` lists what each format looks like.", field="data")


def epoch(step: int, batch: int, count: int, seed: int) -> NDArray[np.int64]:
    """Indices of a step: every picture once in each pass, in an order of its own."""
    at = np.arange(step * batch, (step + 1) * batch)
    orders = {each: np.random.default_rng((seed, 1, each)).permutation(count) for each in np.unique(at // count)}
    return np.array([orders[i // count][i % count] for i in at.tolist()])


def _has_bfloat16(like: Tensor) -> bool:
    """Whether the processor multiplies bfloat16 itself (AMX, AVX512-BF16); graphics cards that train do."""
    if like.device.type != "cpu":
        return bool(torch.cuda.is_bf16_supported())
    able: dict[str, object] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # newer torch says; older is taken to have none
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
