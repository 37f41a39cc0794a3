"""Recipes of byte language models: next-byte prediction on text that is on every machine, and bits per byte.

Parts shared by a service's recipe and a study that trains. Knows networks by what they do with ids [B,T]: give
logits; knows no architecture.
"""

import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fovea_recipes.training.recipe import Batch, Recipe
from fovea_recipes.training.text_corpus import Corpus, Split, corpus

BYTES = 256
"""Tokens of a byte model."""

_VALID = 16
"""Windows of validation text that a score is measured on."""


class ByteRecipe(Recipe):
    """Next-byte prediction on windows of `context` bytes."""

    context: int = 256
    held_out: int = 48
    """Windows of held-out text that bits per byte are measured on."""

    def split(self, name: Split) -> Corpus:
        """A part of the text."""
        return corpus(name)

    def network(self) -> nn.Module:
        net = super().network()
        if hasattr(net, "text"):
            fixed = cast("Tensor", net.text)
            fixed.copy_(torch.from_numpy(self._train.data[: len(fixed)].astype(np.int64)))
        return net

    def prepare(self, cache: Path) -> str:
        return self._train.digest

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        yield {"ids": self._train.draw(rng, self.schedule.batch, self.context + 1)}

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(network(batch["ids"][:, :-1]).flatten(0, 1), batch["ids"][:, 1:].flatten())

    def score(self, network: nn.Module) -> float:
        return -bits_per_byte(network, self.split("valid").windows(_VALID, self.context + 1))

    def facts(self) -> dict[str, str]:
        about = "Sources of Python's standard library and help topics, split by file 90/5/5; Python's licence."
        return {"text": about, "test_digest": self.split("test").digest}

    def test_windows(self) -> Tensor:
        """Held-out text [N,context+1]."""
        return self.split("test").windows(self.held_out, self.context + 1)

    @cached_property
    def _train(self) -> Corpus:
        return self.split("train")


def bits_per_byte(network: nn.Module, ids: Tensor, **options: bool) -> float:
    """Bits per byte of windows [N,L+1], each byte told by those before it in the window."""
    return float(bits_of_windows(network, ids, **options).mean())


@torch.no_grad()
def bits_of_windows(network: nn.Module, ids: Tensor, **options: bool) -> Tensor:
    """Bits per byte [N] of each window of `bits_per_byte`."""
    logits = torch.cat([cast("Tensor", network(part[:, :-1], **options)) for part in torch.split(ids, 8)])
    return bits_of(logits, ids[:, 1:])


def bits_of(logits: Tensor, ids: Tensor) -> Tensor:
    """Bits per byte [N] that logits [N,L,V] give to ids [N,L]."""
    return functional.cross_entropy(logits.mT, ids, reduction="none").mean(1) / math.log(2)
