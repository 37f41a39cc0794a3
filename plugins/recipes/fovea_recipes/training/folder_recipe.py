"""A Recipe whose data is a folder that the user names: splits, checks and half precision are the same for all.

Knows pictures and splits; the label formats are read by the recipes.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field, PrivateAttr, field_serializer
from torch import Tensor, nn

from fovea.errors import InvalidOption
from fovea_recipes.training.calibrate import ServingFacts, fit_novelty_detector, sample_pictures
from fovea_recipes.training.data.ood_images import make_ood_image, scramble
from fovea_recipes.training.data.splits import held_out
from fovea_recipes.training.data.survey import FileProblem, Survey, read_picture
from fovea_recipes.training.recipe import Recipe
from shared.registry.discovery import shipped_weights
from shared.registry.weights import find_weights, read_weights

OTHERS, STRANGE = 60, 60
"""Most pictures of a folder of another kind whose features are looked at, and pictures of no kind of each sort."""

Pixels = NDArray[np.uint8]


def is_empty(several: tuple[object, ...]) -> bool:
    """Whether a knob of several things was left out."""
    return not several


class DataSource(BaseModel, frozen=True, extra="forbid"):
    """Where a data set comes from; what is said here stands on the Card of what was trained on it."""

    title: str = Field("", description="Name of the data set; left out, that of its folder.")
    doi: str = Field("", description="DOI or address.")
    terms: str = Field("", description="Licence or terms, as its authors state them.")


class FolderRecipe(Recipe):
    """Parts shared by recipes on a folder of your own; `fovea train RECIPE --data DIR` sets `data`.

    `origin` is the kind of the pictures in training; features of at most `known` of them are looked at.
    """

    origin: ClassVar[str] = "real"
    known: ClassVar[int] = 150

    data: Path = Field(description="The folder of the data set.")
    held_out: str = Field("", description="Pattern of the names of pictures to measure on.")
    group_by: str = Field("", description="Pattern of what belongs together in a file's name, and is never split.")
    share: float = Field(0.15, gt=0, lt=1, description="Share held out, where neither folders nor a list say which.")
    half: bool | None = Field(None, description="bfloat16; by default where the processor computes with it.")
    start: str | None = Field(None, description="Weights to start from, a name or a file: layers of equal shape.")
    source: DataSource = DataSource()
    others: tuple[Path, ...] = Field(
        (), description="Folders of pictures of other kinds: how well these are distinguished is measured."
    )
    foreign: tuple[Path, ...] = Field(
        (),
        exclude_if=is_empty,  # knobs of runs that began before it existed stay the same
        description="Folders of what may come by mistake: half of their pictures teach the warning, half measure it.",
    )

    _survey: Survey | None = PrivateAttr(None)
    _cache: Path = PrivateAttr(Path())
    _digest: str | None = PrivateAttr(None)

    @abstractmethod
    def gather(self) -> str:
        """Find pictures and labels, look at them, split them and decode them; return the digest of the data."""

    def prepare(self, cache: Path) -> str:
        if self._digest is None:
            self._cache = cache
            self._digest = self.gather()
        return self._digest

    @field_serializer("start")
    def _name_start(self, start: str | None) -> str | None:
        return None if start is None else Path(start).stem

    @field_serializer("others", "foreign")
    def _name_folders(self, folders: tuple[Path, ...]) -> list[str]:
        return [folder.name for folder in folders]

    def source_facts(self, held_out: int) -> dict[str, str]:
        """Facts of the data set for the manifest."""
        title = self.source.title or f"the folder {self.data.name}"
        return {
            "folder": self.data.name,
            "origin": self.origin,
            "measured_on": f"{title} ({self.origin}), {held_out:,} held-out pictures",
            **{name: value for name, value in self.source.model_dump().items() if value},
        }

    def read(self, path: Path) -> Pixels:
        """A picture (h, w, 3) as it is trained on and measured."""
        return read_picture(path)

    def embedder(self, network: nn.Module) -> Callable[[Pixels], NDArray[np.float32]] | None:
        """Features (c,) of a picture as it is served; None where the network has none to compare by."""
        return None

    def split_pictures(self) -> tuple[Sequence[Path], Sequence[Path]]:
        """Pictures that were trained on, and held out."""
        return (), ()

    def vary(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """A copy as another camera would have taken it."""
        return pixels

    def calibrate(self, network: nn.Module) -> ServingFacts:
        return self.calibrate_warnings(network)

    def calibrate_warnings(self, network: nn.Module) -> ServingFacts:
        """Which pictures are of the kind that was trained on."""
        embed = self.embedder(network.eval())
        if embed is None:
            return ServingFacts()
        train, out = self.split_pictures()
        rng = np.random.default_rng((self.seed, 21))
        some = [train[index] for index in np.sort(rng.permutation(len(train))[: self.known])]
        pictures = (self.read(path) for path in some)
        known = [embed(each) for pixels in pictures for each in (pixels, self.vary(pixels, rng))]
        drawn = [embed(make_ood_image(rng)) for _ in range(STRANGE)]
        mixed = [embed(scramble(self.read(path), rng)) for path in some[:STRANGE]]
        return fit_novelty_detector(
            np.stack(known),
            np.arange(len(known)) // 2,
            np.stack([embed(self.read(path)) for path in out]),
            {folder.name: self._embed_some(folder, embed) for folder in self.others if folder not in self.foreign},
            {folder.name: self._embed_some(folder, embed) for folder in self.foreign},
            (np.stack(drawn), np.stack(mixed)),
        )

    def _embed_some(self, folder: Path, embed: Callable[[Pixels], NDArray[np.float32]]) -> NDArray[np.float32]:
        """Features (n, c) of pictures of another kind; InvalidOption if the folder holds too few."""
        found = sample_pictures(folder, OTHERS)
        if len(found) < 2:
            raise InvalidOption(f"{folder} holds {len(found)} pictures; two are needed.", field="others")
        return np.stack([embed(self.read(path)) for path in found])

    def network(self) -> nn.Module:
        return self.load_start(super().network())

    def load_start(self, built: nn.Module) -> nn.Module:
        """`built` with the layers of `start` that have the same name and shape; as it is where there is no start.

        Raises:
            InvalidOption: No layer is the same.
        """
        if self.start is None:
            return built
        path = Path(self.start)
        shipped = shipped_weights().get(path.stem) if len(path.parts) == 1 else None
        folder = path.parent if shipped is None else shipped.parent
        arrays = read_weights(find_weights(path.stem, folder, folder)).arrays
        ours = built.state_dict()
        same = {k: torch.from_numpy(v) for k, v in arrays.items() if k in ours and ours[k].shape == v.shape}
        if not same:
            detail = f"No layer of {path.stem} has the name and shape of one of {self.name}."
            raise InvalidOption(detail, hint="Start from weights of the same network.", field="start")
        built.load_state_dict(ours | same)
        return built

    def survey(self) -> Survey | None:
        """Summary of the folder by `prepare`; None before it."""
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
        """See that there is enough to train on; InvalidOption with the first problem if there is not."""
        if count >= least:
            return
        why = f" {problems[0].path.name} {problems[0].kind}." if problems else ""
        detail = f"{self.data} has {count} {what}; {self.name} needs {least} or more.{why}"
        raise InvalidOption(detail, hint="docs/09-your-own-data.md shows what each recipe reads.", field="data")


def epoch(step: int, batch: int, count: int, seed: int) -> NDArray[np.int64]:
    """Indices of a step: every picture once in each pass, in an order of its own."""
    at = np.arange(step * batch, (step + 1) * batch)
    orders = {each: np.random.default_rng((seed, 1, each)).permutation(count) for each in np.unique(at // count)}
    return np.array([orders[i // count][i % count] for i in at.tolist()])


def swap_ends(marked: NDArray[np.bool_], aside: int) -> list[int]:
    """Two places of samples (n,) to exchange, so that something is marked among the first `aside`, and behind them.

    The first choose the weights, the others are trained on; two or more must be marked.
    """
    where = np.flatnonzero(marked).tolist()
    return [0, where[0]] if where[0] >= aside else [len(marked) - 1, where[-1]] if where[-1] < aside else [0, 0]


def _has_bfloat16(like: Tensor) -> bool:
    """Whether the processor multiplies bfloat16 itself (AMX, AVX512-BF16); graphics cards that train do."""
    if like.device.type != "cpu":
        return bool(torch.cuda.is_bf16_supported())
    # Newer torch says; older is taken to have none.
    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
