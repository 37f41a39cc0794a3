"""Model runner: forward passes of one decoder over pages, for chunks of prompts and for batches of decode steps.

Knows the decoder and its attention seams; knows nothing about sampling or scheduling.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from services.llm_longctx.engine.attention.decode import StepAttention
from services.llm_longctx.engine.attention.layer_inputs import LayerInputs
from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.engine.attention.prefill import ChunkAttention
from services.llm_longctx.engine.attention.prompt_end import end_prompt
from services.llm_longctx.engine.attention.step_rows import StepRows
from services.llm_longctx.engine.device.decoder_passes import DecoderPasses
from services.llm_longctx.engine.device.step_draws import StepDraws
from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.engine.taps import SequenceTaps
from services.llm_longctx.engine.taps.sequence_taps import tap_rows
from services.llm_longctx.engine.taps.tapped_steps import open_step_taps, open_tap, sort_taps, step_alone, tap_of
from services.llm_longctx.kernels import Addition, SmallMatrix
from services.llm_longctx.kv_cache import PagePool, PoolExhausted
from shared.lm.decoder import Decoder
from shared.lm.lora import LoraAdapter
from shared.lm.tensor_parallel import Team


class ModelRunner:
    """Runs one decoder for sequences that share a pool, each under its own method.

    Attributes:
        model: The decoder, in eval mode.
        pool: The pages.
        backend, weights_sha256, team: As in `Engine`.
        dense: Policy of dense attention, with which methods are compared.
        passes: The decoder's passes, in C++, recorded, or layer by layer.
    """

    def __init__(
        self,
        model: Decoder,
        pool: PagePool,
        backend: str,
        weights_sha256: str = "",
        packed: Mapping[str, SmallMatrix] = MappingProxyType({}),
        team: Team | None = None,
    ) -> None:
        self.model, self.pool, self.backend, self.team = model, pool, backend, team
        self.weights_sha256 = weights_sha256
        self.dense = Policy.of(model.config, "dense")
        self.passes = DecoderPasses(model, pool, backend, packed, team)

    def open(self, policy: Policy, adapter: LoraAdapter | None = None) -> PagedState:
        """State of a new sequence, which has read nothing."""
        return PagedState(self.pool, policy, adapter)

    @torch.inference_mode()
    def prefill(
        self,
        state: PagedState,
        chunk: Sequence[int],
        *,
        last: bool,
        keep: int | None,
        boundaries: Sequence[int] | None = None,
        taps: SequenceTaps | None = None,
    ) -> Tensor:
        """Read a chunk of a prompt, one token or more and `last` if it ends the prompt; the sequence holds it then.

        Methods that would predict chunk borders (DHSA) take `boundaries` instead, 0 and N included.

        Returns:
            Logits of the last `keep` positions, or of all [T,V].

        Raises:
            PoolExhausted: Pages ran out; the sequence is of no use any more.
        """
        method, offset, adapter = state.policy.method, state.cache.length, state.adapter
        inputs = LayerInputs(self.model, [method.needs], [adapter])
        seam = ChunkAttention(state, last=last, boundaries=boundaries, backend=self.backend, inputs=inputs)
        forward = open_tap(taps, state, offset, chunk)
        logits = self.passes.read(chunk, seam, offset, keep, tap_of(inputs, forward), adapter)
        if forward is not None:
            forward.end()
        state.cache.length += len(chunk)
        if method.overrides("after_prompt"):
            state.read_ids += chunk
            if last:
                end_prompt(self.model, state, state.read_ids, self.backend)
        return logits[0]

    @torch.inference_mode()
    def decode(
        self,
        states: Sequence[PagedState],
        tokens: Sequence[int],
        taps: Sequence[SequenceTaps | None] = (),
        draws: StepDraws | None = None,
    ) -> Tensor:
        """Feed one token to each sequence, whose caches grow by one: logits [B,V].

        In C++, while no head is cut, a sequence may come several times, one behind the other, with a token and those
        behind it: each sees the ones before, and the logits are the ones of as many steps.

        Sequences may have `taps`. With `draws`, a token is drawn next to each row of logits; not in C++. Raises
        PoolExhausted: the step needs more pages than are free; then nothing has changed. Or addresses ran out in the
        middle of it; then its sequences are of no use any more.
        """
        times = Counter(states)
        if (wanted := sum(s.cache.pages_needed(n) for s, n in times.items())) > self.pool.free:
            raise PoolExhausted(f"a step needs {wanted} pages, and {self.pool.free} are free")
        if any(taps) and self.passes.has_native_step and not self._inputs_of(states).is_tapped:
            return self._decode_tapped(states, tokens, taps)
        return self._run_step(StepRows(states, tokens, draws), taps=taps)

    def _decode_tapped(
        self, states: Sequence[PagedState], tokens: Sequence[int], taps: Sequence[SequenceTaps | None]
    ) -> Tensor:
        """In C++, who adds vectors to the residual stream stays in the step of all, anything else steps alone.

        Logits of the others are what they would be without, bit for bit.
        """
        additions, alone = sort_taps(states, taps)
        if not alone:
            return self._run_step(StepRows(states, tokens), additions)
        together = [i for i in range(len(states)) if i not in alone]
        logits = torch.empty(len(states), self.model.config.vocab, device="cpu")  # where C++ steps leave them
        if together:
            rows = StepRows([states[i] for i in together], [tokens[i] for i in together])
            logits[together] = self._run_step(rows, additions).float().cpu()
        for i, one in alone.items():
            rows = StepRows([states[i]], [tokens[i]])
            seam = StepAttention(rows, self.backend, self._inputs_of(rows.states))
            logits[i] = step_alone(self.passes, seam, one).float().cpu()
        return logits

    def _run_step(
        self, rows: StepRows, additions: Sequence[Addition] = (), taps: Sequence[SequenceTaps | None] = ()
    ) -> Tensor:
        """Run a step and end it in all caches: logits [B,V]. Additions are for a step in C++, taps for one in torch."""
        inputs = self._inputs_of(rows.states)
        seam = StepAttention(rows, self.backend, inputs)
        forwards = open_step_taps(rows, taps) if any(taps) else []
        tap = tap_of(inputs, tap_rows(forwards) if any(forwards) else None)
        logits = self.passes.step(seam, additions, tap)
        for forward in filter(None, forwards):
            forward.end()
        for s in rows.states:
            s.cache.end_step()
        return logits

    def _inputs_of(self, states: Sequence[PagedState]) -> LayerInputs:
        """Inputs of a step's layers that its methods need."""
        needs = [s.policy.method.needs for s in states if s.policy.method.overrides("after_decode")]
        return LayerInputs(self.model, needs, [s.adapter for s in states])
