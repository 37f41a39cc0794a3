"""Sweep of patches: a grid of layers × positions, or layers × heads, of one prompt, one patch each, many at a time.

Patches that begin at one token share the keys and values of all before it, and run in one batch. The arithmetic is that
of served prompts. Knows a decoder and token ids; knows nothing about text.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.lm.activation_names import Site, SiteScope
from shared.lm.attention import DenseAttention, ignore_taps
from shared.lm.cache import KVCache
from shared.lm.decoder import Decoder
from shared.lm.interventions import Replace
from shared.lm.ops import Ops
from shared.lm.tap_attention import TapRecorder
from shared.registry import CallContext

BATCH_BYTES = 256 * 2**20
"""Keys, values and activations of the patches that run together."""


@dataclass(frozen=True, slots=True)
class SweepCell:
    """One patch.

    Attributes:
        site: The replaced activation.
        positions: At which tokens, ascending.
        heads: Of which heads; None for all.
    """

    site: Site
    positions: tuple[int, ...]
    heads: tuple[int, ...] | None = None


class PatchSweep:
    """Runs patches of one prompt.

    Args:
        model: The decoder.
        ops: Its arithmetic.
        ids: The prompt.
        run: Deadline, cancellation and progress.
    """

    def __init__(self, model: Decoder, ops: Ops, ids: Sequence[int], run: CallContext) -> None:
        self._model, self._ops, self._run = model, ops, run
        self._ids = torch.tensor([list(ids)], device=model.output_matrix.device)
        self._cache = self._new_cache()
        self.forward_tokens = 0

    @torch.inference_mode()
    def read(self) -> Tensor:
        """The prompt as it is: logits [V] behind it. Comes first."""
        return self._forward(self._ids, self._cache, None)[0]

    @torch.inference_mode()
    def capture(self, ids: Sequence[int], sites: Sequence[Site]) -> tuple[Tensor, dict[Site, Tensor]]:
        """Another prompt of as many tokens: logits [V] behind it, and sites [1,T,…]."""
        rows, names = torch.tensor([list(ids)], device=self._ids.device), [str(site) for site in sites]
        recorder = TapRecorder(self._extent(1, 0), names, (), None, grad=False)
        logits = self._forward(rows, self._new_cache(), recorder)[0]
        return logits, {site: recorder.captured[name] for site, name in zip(sites, names, strict=True)}

    @torch.inference_mode()
    def patch(self, cells: Sequence[SweepCell], values: Mapping[Site, Tensor] | None) -> dict[SweepCell, Tensor]:
        """Patch one cell after another with `values` [1,T,…], or with zero: logits [V] behind the prompt for each.

        Raises:
            Cancelled, DeadlineExceeded: Between two batches.
        """
        waiting: dict[int, list[SweepCell]] = defaultdict(list)
        for cell in cells:
            waiting[cell.positions[0]].append(cell)
        found: dict[SweepCell, Tensor] = {}
        for begin, group in waiting.items():
            size = max(1, BATCH_BYTES // self._row_bytes())
            for at in range(0, len(group), size):
                self._run.check()
                self._run.progress(len(found) / len(cells))
                batch = group[at : at + size]
                found |= zip(batch, self._run_batch(begin, batch, values), strict=True)
        return found

    def _run_batch(self, begin: int, cells: Sequence[SweepCell], values: Mapping[Site, Tensor] | None) -> Tensor:
        """Cells that begin at one token: logits [B,V]."""
        edits = [
            (
                Replace(
                    str(cell.site),
                    torch.zeros(1, device=self._ids.device) if values is None else values[cell.site][:, begin:],
                    cell.heads,
                    cell.positions,
                ),
                slice(row, row + 1),
            )
            for row, cell in enumerate(cells)
        ]
        # Each edit sees the one row that it is given.
        recorder = TapRecorder(self._extent(1, begin), (), edits, None, grad=False)
        cache, shared = self._new_cache(len(cells)), self._cache
        for layer in range(self._model.config.layers if begin else 0):
            k, v = shared.keys(layer, begin), shared.values(layer, begin)
            cache.write(layer, k.expand(len(cells), -1, -1, -1), v.expand(len(cells), -1, -1, -1), 0)
        cache.length = begin
        return self._forward(self._ids[:, begin:].repeat(len(cells), 1), cache, recorder)

    def _forward(self, ids: Tensor, cache: KVCache, recorder: TapRecorder | None) -> Tensor:
        """Logits [B,V] behind the last token of ids [B,T]."""
        self.forward_tokens += ids.numel()
        dense = DenseAttention(cache, None, self._model.config.windows)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, offset: int) -> Tensor:
            return dense(layer, q.float(), k.float(), v.float(), offset).to(q.dtype)

        logits: Tensor = self._model(
            ids, cache=cache, attend=attend, keep=1, ops=self._ops, tap=recorder or ignore_taps
        )
        return logits[:, 0].float()

    def _extent(self, rows: int, begin: int) -> SiteScope:
        return SiteScope(rows, self._ids.shape[1] - begin, begin, more=False, config=self._model.config)

    def _new_cache(self, rows: int = 1) -> KVCache:
        return KVCache(self._model.config, rows, room=self._ids.shape[1], device=self._ids.device)

    def _row_bytes(self) -> int:
        """Bytes of one patch: keys and values in float32, and some streams."""
        config = self._model.config
        streams = 8 * config.width + config.hidden
        return 4 * self._ids.shape[1] * (2 * config.layers * config.kv_heads * config.head_dim + streams)
