"""Recipe of `fovea-landmark-recall`: a landmark GPT of 101 k parameters that finds pairs far beyond its trained length.

Trained on 24 to 64 tokens; read up to 2,048 through the two best blocks of eight. With `form="plain"` the same network
without landmarks is trained, the twin that shows what they are worth.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fovea_memory.mixers.landmark.networks import LandmarkGPT
from fovea_memory.mixers.landmark.session import Gate
from fovea_recipes.llm_longctx.recall import LANDMARK, TEST_SEED, VALID_SEED, VOCAB, RecallBatch, draw
from fovea_recipes.training.recipe import Batch, Recipe, Schedule, language_schedule

BODIES = (8, 16, 24, 32, 40)
"""Lengths before the questions, in turn."""

QUESTIONS = 8
"""Asked in training: with the longest body 64 tokens."""

STREAM_CHUNK = 16
"""Tokens that a session reads at a time: with its blocks they stay inside the trained positions."""


def with_landmarks(ids: Tensor, block: int) -> Tensor:
    """Tokens [B,T] with a landmark behind every `block`-th."""
    parts = [
        torch.cat((part, torch.full_like(part[:, :1], LANDMARK)), 1) if part.shape[1] == block else part
        for part in torch.split(ids, block, 1)
    ]
    return torch.cat(parts, 1)


def _gate_loss(asking: Tensor, keys: Tensor, older: Tensor, home: Tensor) -> Tensor:
    """Cross-entropy of the right landmark [B,A] for queries [B,H,A,d] among keys [B,H,n,d]; older [A,n]."""
    chances = (asking @ keys.mT * asking.shape[-1] ** -0.5).masked_fill(~older, -torch.inf).log_softmax(-1)
    closed = home < older.sum(-1)
    target = home.clamp(max=keys.shape[2] - 1)[:, None, :, None].expand(-1, keys.shape[1], -1, 1)
    lost = -chances.gather(-1, target)[..., 0].masked_fill(~closed[:, None], 0)
    mean: Tensor = lost.sum() / (closed.sum() * keys.shape[1]).clamp(min=1)
    return mean


class LandmarkRecallRecipe(Recipe, name="landmark-recall", weights="fovea-landmark-recall", builds="landmark-gpt"):
    """Landmark attention on key-value recall."""

    schedule: Schedule = language_schedule(
        steps=3000, batch=32, rate=3e-3, floor=1e-4, warm_up=100, decay=1e-3, ema=0.99, validate_every=250
    )
    form: Literal["landmark", "plain"] = "landmark"
    block: int = 8
    width: int = 64
    layers: int = 2
    heads: int = 4
    answers: int = 256
    gate: float = Field(1.0, ge=0, description="Weight of the loss that teaches the last layer's gates.")

    def config(self) -> dict[str, Any]:
        sizes = {"width": self.width, "layers": self.layers, "heads": self.heads}
        return {"vocab": VOCAB, **sizes, "block": self.block, "landmark_id": LANDMARK, "context": 72}

    def prepare(self, cache: Path) -> str:  # everything is drawn from the seed
        first = [
            draw(np.random.default_rng((self.seed, step)), self.schedule.batch, BODIES[-1], QUESTIONS).ids
            for step in range(4)
        ]
        return hashlib.sha256(torch.cat(first).numpy().tobytes()).hexdigest()

    def batches(self, step: int, rng: np.random.Generator) -> Iterator[Batch]:
        drawn = draw(rng, self.schedule.batch, BODIES[step % len(BODIES)], QUESTIONS)
        # After two fifths a token reads few older blocks, as it will when a stream is read.
        few = step >= 0.4 * self.schedule.steps
        most = int(rng.integers(1, 4)) if few else 0
        yield {
            "ids": drawn.ids,
            "answers": drawn.answers.expand(len(drawn.ids), -1),
            "written": drawn.written,
            "most": torch.full((len(drawn.ids),), most),
        }

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        ids, answers = batch["ids"], batch["answers"][0]
        targets = ids[:, answers].flatten()
        if self.form == "plain":
            return functional.cross_entropy(self._answers(network, ids, answers).flatten(0, 1), targets)
        net = cast("LandmarkGPT", network)
        net.max_blocks = int(batch["most"][0]) or None
        logits, gates = self._gated(net, ids, answers - 1, batch["written"] // self.block)
        net.max_blocks = None
        return functional.cross_entropy(logits.flatten(0, 1), targets) + self.gate * gates

    def score(self, network: nn.Module) -> float:
        return float(self._whole(network, 52, VALID_SEED).mean())

    def measure(self, network: nn.Module) -> dict[str, float]:
        lengths = (64, 512, 1024, 2048)
        if self.form == "plain":
            return self.average(**{f"recall_{n}": self._whole(network, n - 12, TEST_SEED) for n in lengths})
        # Read at once, a landmark network costs the square of the length: beyond 512 tokens it is only streamed.
        recalls = {f"recall_{n}": self._whole(network, n - 12, TEST_SEED) for n in (64, 512)}
        net, shares = cast("LandmarkGPT", network), dict[str, float]()
        for n in lengths:
            for k in (1, 2, 3):
                recalls[f"recall_{n}_k{k}"], cited = self._streamed(net, n - 12, k)
                if (n, k) == (1024, 2):
                    shares["cited_key_1024_k2"] = cited
            if n > 64:
                recalls[f"recall_{n}_k2_mean_gate"] = self._streamed(net, n - 12, 2, "mean")[0]
        found = self.average(**recalls)
        return found | shares | {"kept_1024_k2": found["recall_1024_k2"] / max(found["recall_64"], 1e-9)}

    def facts(self) -> dict[str, str]:
        return {
            "task": "Key-value recall: 8 fillers, 16 keys, 16 values; chance 0.0625.",
            "recall": f"Share of {self.answers} answers; recall_N reads all N tokens at once, recall_N_kK in chunks of "
            f"{STREAM_CHUNK} through the K best blocks; mean_gate chooses blocks by the mean of their keys.",
            "kept_1024_k2": "recall_1024_k2 over recall_64: what 16 times the trained length leaves.",
            "departures": "Beside the answers' loss, the last layer's gates are told which block holds the asked key "
            "(weight `gate`), and behind two fifths of the steps a token reads 1 to 3 older blocks.",
            "cited_key": "Share of heads above the first layer that fetched the block of the key when asked for it.",
        }

    def _answers(self, network: nn.Module, ids: Tensor, answers: Tensor) -> Tensor:
        """Logits [B,A,V] at the tokens before the answers."""
        before = answers - 1
        if self.form == "plain":
            return cast("Tensor", network(ids))[:, before]
        logits: Tensor = network(with_landmarks(ids, self.block))
        return logits[:, before + before // self.block]

    def _gated(self, net: LandmarkGPT, ids: Tensor, before: Tensor, home: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B,A,V] at the tokens `before` answers, and the cross-entropy of the last layer's gates.

        A gate is right where the landmark of the asked pair's block `home` [B,A] wins among older ones. It is trained
        at the positions of training and at the one slot that a stream gives to blocks that are old. From the answers
        alone the gates of so small a network stay diffuse: it reads a little of every block, which works for seven.
        """
        full = with_landmarks(ids, self.block)
        at, asked = torch.arange(full.shape[1], device=ids.device), before + before // self.block
        landmarks = at[self.block :: self.block + 1]
        slot = torch.full_like(landmarks, self.block)
        x, right = net.embed(full), torch.zeros((), device=ids.device)
        for layer, block in enumerate(net.layers):
            q, k, v = (part.transpose(1, 2) for part in block.project(x))
            turned, keys = net.rotate(q, at), net.rotate(k, at)
            if layer == len(net.layers) - 1:
                ways = (keys[:, :, landmarks], net.rotate(k[:, :, landmarks], slot))
                right = torch.stack(
                    [_gate_loss(turned[:, :, asked], way, landmarks < asked[:, None], home) for way in ways]
                )
            x = x + block.output(net.attend(turned, keys, v, full == LANDMARK).transpose(1, 2))
            x = x + block.feed(x)
        return net.logits(x)[:, asked], right.mean()

    @torch.no_grad()
    def _whole(self, network: nn.Module, body: int, seed: int) -> NDArray[np.float64]:
        """Recall of each text when all is read at once."""
        drawn = self._held_out(body, seed)
        found = [self._answers(network, part, drawn.answers).argmax(-1) for part in torch.split(drawn.ids, 16)]
        return (torch.cat(found) == drawn.expected).double().mean(1).numpy()

    @torch.no_grad()
    def _streamed(
        self, net: LandmarkGPT, body: int, k: int, gate: Gate = "landmark"
    ) -> tuple[NDArray[np.float64], float]:
        """Recall of each text as a stream, and how often the asked key's block was fetched."""
        drawn = self._held_out(body, TEST_SEED)
        session = net.session(len(drawn.ids), blocks=k, gate=gate)
        logits, fetched = [], []
        for at, part in enumerate(torch.split(drawn.ids, STREAM_CHUNK, 1)):
            step = session.feed(part)
            logits.append(step.logits)
            fetched.append(self._fetched(step.blocks[1:], step.is_token, drawn, at * STREAM_CHUNK))
        found = torch.cat(logits, 1)[:, drawn.answers - 1].argmax(-1)
        hits = (
            torch.cat([part for part in fetched if part is not None]) if any(p is not None for p in fetched) else None
        )
        recall = (found == drawn.expected).double().mean(1).numpy()
        return recall, float("nan") if hits is None else float(hits.double().mean())

    def _fetched(self, blocks: list[Tensor | None], kept: Tensor, drawn: RecallBatch, start: int) -> Tensor | None:
        """Whether each head of each later layer fetched the block of the key that it was asked for, in this chunk.

        Blocks that were not yet stored when the chunk began are read without being fetched, and do not count.
        """
        rows, home = kept.nonzero().flatten(), drawn.written // self.block
        asked = [(i, int(p) - 1 - start) for i, p in enumerate(drawn.answers) if 0 <= int(p) - 1 - start < len(rows)]
        hits = [
            (chosen[stored][:, :, rows[at]] == home[stored, i, None, None]).any(-1).flatten()
            for chosen in blocks
            if chosen is not None
            for i, at in asked
            for stored in [home[:, i] < start // self.block]
        ]
        return torch.cat(hits) if hits else None

    def _held_out(self, body: int, seed: int) -> RecallBatch:
        return draw(np.random.default_rng((seed, body)), self.answers // 4, body)
