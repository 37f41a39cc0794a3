"""Recipes of `fovea-titans-*`: memories that keep pairs across segments, where attention alone has lost them.

One recipe, five layouts: `mac`, `mag`, `mal`, `lmm`, and `attention`, the twin of MAC without a memory, which sees no
further than its segment. Trained on up to 128 tokens, measured on up to 2,048.

A memory starts as one that keeps what followed each token (see `_init_shifted`): from random projections the same
networks stay for thousands of steps where all they do is name one of the four values.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fovea_memory.mixers.titans.layers import PersistentAttention
from fovea_memory.mixers.titans.memory import TitansMemory
from fovea_memory.mixers.titans.networks import TitansLM
from fovea_recipes.llm_longctx.recall import TEST_SEED, VALID_SEED, VOCAB, RecallBatch, draw
from fovea_recipes.training.recipe import Batch, Recipe, Schedule, language_schedule

LENGTHS = (64, 128, 256, 512, 1024, 2048)


class _TitansRecipe(Recipe):
    """Key-value recall through a memory."""

    schedule: Schedule = language_schedule(
        steps=800, batch=32, rate=3e-3, floor=1e-4, warm_up=100, decay=1e-3, ema=0.98, validate_every=100
    )
    width: int = 64
    layers: int = 2
    heads: int = 4
    segment: int = 32
    window: int = 32
    persistent: int = 4
    depth: int = 1
    refresh: int = 16
    longest: int = Field(104, ge=8, description="Longest body in training; with its questions 128 tokens.")
    questions: int = Field(8, ge=1, description="Asked in training.")
    shifted: bool = Field(default=True, description="Start with memories of what followed, and not at random.")
    answers: int = 256

    def config(self) -> dict[str, Any]:
        names = ("width", "layers", "heads", "segment", "window", "persistent", "depth", "refresh")
        return {"vocab": VOCAB, **{name: getattr(self, name) for name in names}}

    def network(self) -> nn.Module:
        net = cast("TitansLM", super().network())
        if self.shifted:
            _init_shifted(net)
        return net

    def prepare(self, cache: Path) -> str:
        drawn = (self._draw_batch(step, np.random.default_rng((self.seed, step))) for step in range(4))
        return hashlib.sha256(b"".join(batch.ids.numpy().tobytes() for batch in drawn)).hexdigest()

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        drawn = self._draw_batch(step, rng)
        yield {"ids": drawn.ids, "answers": drawn.answers.expand(len(drawn.ids), -1)}

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        ids, answers = batch["ids"], batch["answers"][0]
        logits: Tensor = network(ids)[:, answers - 1]
        return functional.cross_entropy(logits.flatten(0, 1), ids[:, answers].flatten())

    def score(self, network: nn.Module) -> float:
        lengths = (self.longest, 4 * self.longest)
        return float(np.mean([self._recall(network, length, VALID_SEED) for length in lengths]))

    def measure(self, network: nn.Module) -> dict[str, float]:
        return self.average(**{f"recall_{n}": self._recall(network, n - 12, TEST_SEED) for n in LENGTHS})

    def facts(self) -> dict[str, str]:
        return {
            "task": "Key-value recall: 8 fillers, 16 keys, 16 values; chance 0.0625.",
            "recall": f"Share of {self.answers} answers after reading N tokens as one stream.",
        }

    def _draw_batch(self, step: int, rng: np.random.Generator) -> RecallBatch:
        """Lengths grow over the first quarter: short distances come first, and cost least."""
        reach = min(1.0, 0.1 + 3.6 * step / self.schedule.steps)
        body = 8 + 2 * int(rng.integers(0, int(reach * (self.longest - 8) / 2) + 1))
        return draw(rng, self.schedule.batch, body, self.questions)

    @torch.no_grad()
    def _recall(self, network: nn.Module, body: int, seed: int) -> NDArray[np.float64]:
        """Share of answers that are right, of each text."""
        drawn: RecallBatch = draw(np.random.default_rng((seed, body)), self.answers // 4, body)
        found = torch.cat([network(part)[:, drawn.answers - 1].argmax(-1) for part in torch.split(drawn.ids, 16)])
        return (found == drawn.expected).double().mean(1).numpy()


@torch.no_grad()
def _init_shifted(net: TitansLM) -> None:
    """Matrices scaled by their width; keys start as those of the token before, and queries ask in the same terms.

    So a memory begins as one of what followed each token, and attention as one that finds equal tokens.
    """
    for matrix in net.parameters():
        if matrix.dim() == 2:
            nn.init.normal_(matrix, std=matrix.shape[1] ** -0.5)
    nn.init.normal_(net.embed.weight, std=0.1)
    for module in net.modules():
        if isinstance(module, TitansMemory):
            module.to_keys.weight.copy_(module.to_queries.weight)
            for conv, ago in ((module.conv_queries, 0), (module.conv_keys, 1), (module.conv_values, 0)):
                nn.init.normal_(conv.weight, std=0.05)
                conv.weight[:, :, -1 - ago] += 1
        if isinstance(module, PersistentAttention):
            queries, keys, _ = module.to_qkv.weight.chunk(3)
            keys.copy_(queries.mul_(1.5))


class TitansMACRecipe(_TitansRecipe, name="titans-mac-recall", weights="fovea-titans-mac", builds="titans-mac"):
    """Memory as context."""


class TitansMAGRecipe(_TitansRecipe, name="titans-mag-recall", weights="fovea-titans-mag", builds="titans-mag"):
    """Memory as gate."""


class TitansMALRecipe(_TitansRecipe, name="titans-mal-recall", weights="fovea-titans-mal", builds="titans-mal"):
    """Memory as layer."""


class TitansLMMRecipe(_TitansRecipe, name="titans-lmm-recall", weights="fovea-titans-lmm", builds="titans-lmm"):
    """Memory alone."""


class TitansAttentionRecipe(
    _TitansRecipe, name="titans-attention-recall", weights="fovea-titans-attention", builds="titans-attention"
):
    """No memory: measured, never committed."""
