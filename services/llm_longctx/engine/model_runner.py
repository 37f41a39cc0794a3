"""Model runner: forward passes of one decoder over pages, for chunks of prompts and for batches of decode steps.

Knows the decoder and its attention seams; knows nothing about sampling or scheduling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from services.llm_longctx.engine.attention.decode import StepAttention
from services.llm_longctx.engine.attention.layer_inputs import LayerInputs
from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.engine.attention.prefill import ChunkAttention
from services.llm_longctx.engine.attention.prompt_end import end_prompt
from services.llm_longctx.engine.device.fixed_step import FixedStep
from services.llm_longctx.engine.device.graph_steps import open_graphs
from services.llm_longctx.engine.device.step_draws import StepDraws
from services.llm_longctx.engine.kv_manager import PagedState, count_bytes
from services.llm_longctx.engine.taps import SequenceTaps
from services.llm_longctx.engine.taps.sequence_taps import tap_rows
from services.llm_longctx.engine.taps.tapped_steps import open_tap, sort_taps, tap_of
from services.llm_longctx.kernels import Addition, NativeDecoder, PackedMatrix, SmallMatrix, sample
from services.llm_longctx.kernels import layer_ops as kernel_ops
from services.llm_longctx.kernels.decode_step import HEAD, is_supported
from services.llm_longctx.kernels.decoder_ops import NativeOps, PackedPass
from services.llm_longctx.kernels.dispatch import choose
from services.llm_longctx.kv_cache import PagePool, PoolExhausted
from shared.lm.attention import Tap, ignore_taps
from shared.lm.decoder import Decoder
from shared.lm.host_transfer import DeviceBuffer, to_device
from shared.lm.lora import LoraAdapter, LoraOps
from shared.lm.ops import Ops
from shared.lm.tensor_parallel import SummedOps, Team


class ModelRunner:
    """Runs one decoder for sequences that share a pool, each under its own method.

    Attributes:
        model: The decoder, in eval mode.
        pool: The pages.
        backend: Name of the kernels' back end, or `auto`.
        packed: Few-bit matrices by official key that C++ and Triton multiply with; see `NativeDecoder`.
        weights_sha256: Digest of the weights, on which cached prefixes depend.
        dense: Policy of dense attention, with which methods are compared.
        team: The processes that hold the model together; `model` is this one's part then.
        graphs: Decode steps that are recorded, on a device that can.
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
        self.model = model
        self.team = team
        self.packed = packed
        self._native: NativeDecoder | None = None
        self._packed_layers = _layers_of(model, packed)
        few = {layer: matrix for layer, matrix in self._packed_layers.items() if isinstance(matrix, PackedMatrix)}
        self._pass = PackedPass(model, few) if few and PackedPass.is_possible(model, few) else None
        self.pool = pool
        self.backend = backend
        self.weights_sha256 = weights_sha256
        self.dense = Policy.of(model.config, "dense")
        self._open: list[PagedState] = []
        self._buffer = DeviceBuffer(pool.device)
        self.graphs = open_graphs(self.run_fixed, pool, backend)

    def open(self, policy: Policy, adapter: LoraAdapter | None = None) -> PagedState:
        """State of a new sequence, which has read nothing."""
        return self._track(PagedState(self.pool, policy, adapter))

    def fork(self, state: PagedState) -> PagedState:
        """A twin that goes its own way and shares whole pages.

        Raises:
            PoolExhausted: There is no room for what is copied.
        """
        return self._track(state.fork())

    @property
    def held_bytes(self) -> int:
        """Bytes of all pages that open sequences hold; shared ones count once."""
        return count_bytes([s for s in self._open if not s.is_closed])

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
        """Read one chunk of a prompt: logits of its last `keep` positions, or of all [T,V].

        Args:
            state: The sequence; it holds the chunk from now on.
            chunk: Tokens, one or more.
            last: Whether the prompt ends with them.
            keep: Positions that get logits.
            boundaries: Chunk borders for methods that would predict them (DHSA), 0 and N included.
            taps: Edits and captures of its request.

        Raises:
            PoolExhausted: Pages ran out; the sequence is of no use any more.
        """
        borders = None if boundaries is None else tuple(boundaries)
        method = state.policy.method
        inputs = LayerInputs(self.model, [method.needs], [state.adapter])
        seam = ChunkAttention(state, last=last, boundaries=borders, backend=self.backend, inputs=inputs)
        device, offset = self.model.output_matrix.device, state.cache.length
        forward = None if taps is None else open_tap(taps, state, offset, chunk)
        tap = tap_of(inputs, forward)
        ops = self.layer_ops([state.adapter])
        if self._pass is not None and tap is ignore_taps and isinstance(ops, NativeOps):
            logits: Tensor = self._pass.run(chunk, seam, offset, keep, ops)
        else:
            ids = to_device(list(chunk), device)[None]
            logits = self.model(ids, attend=seam, offset=offset, keep=keep, ops=ops, tap=tap)
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

        Where `can_draft`, a sequence may come several times, one behind the other, with a token and those behind it:
        each sees the ones before, and the logits are the ones of as many steps.

        Args:
            states: The sequences.
            tokens: A token for each.
            taps: Edits and captures of their requests. In C++ who adds vectors to the residual stream stays in
                the step of all, anything else is a step of its own; in torch it is one step with taps. Either way the
                logits of the others are what they would be without, bit for bit.
            draws: Sampling settings of each row of logits, where they lie; not in C++ steps.

        Raises:
            PoolExhausted: The step needs more pages than are free; then nothing has changed. Or addresses ran out in
                the middle of it; then its sequences are of no use any more.
        """
        times = Counter(states)
        if (wanted := sum(s.cache.pages_needed(n) for s, n in times.items())) > self.pool.free:
            message = f"a step needs {wanted} pages, and {self.pool.free} are free"
            raise PoolExhausted(message)
        if not any(taps):
            return self._decode_together(states, tokens, draws=draws)
        if not self._has_native_step() or self._inputs_of(states).is_tapped:
            return self._decode_together(states, tokens, taps=taps, draws=draws)
        additions, alone = sort_taps(states, taps)
        if not alone:
            return self._decode_together(states, tokens, additions)
        together = [i for i in range(len(states)) if i not in alone]
        logits = torch.empty(len(states), self.model.config.vocab, device="cpu")  # where C++ steps leave them
        if together:
            found = self._decode_together([states[i] for i in together], [tokens[i] for i in together], additions)
            logits[together] = found.float().cpu()
        for i, one in alone.items():
            logits[i] = self._decode_tapped(states[i], tokens[i], one).float().cpu()
        return logits

    def _decode_together(
        self,
        states: Sequence[PagedState],
        tokens: Sequence[int],
        additions: Sequence[Addition] = (),
        taps: Sequence[SequenceTaps | None] = (),
        draws: StepDraws | None = None,
    ) -> Tensor:
        fed: Counter[PagedState] = Counter()
        positions = []
        for s in states:
            positions.append(s.cache.length + fed[s])
            fed[s] += 1
        inputs = self._inputs_of(states)
        seam = StepAttention(states, self.backend, inputs)
        if taps:
            opened = zip(states, tokens, positions, taps, strict=True)
            rows = [None if one is None else open_tap(one, s, at, [token]) for s, token, at, one in opened]
            logits = self._step_by_torch(
                tokens, positions, seam, tap_of(inputs, tap_rows(rows)), _adapters(states), draws
            )
            for forward in rows:
                if forward is not None:
                    forward.end()
        else:
            logits = self._step(tokens, positions, seam, inputs, additions, _adapters(states), draws)
        for s in states:
            s.cache.end_step()
        return logits

    def _decode_tapped(self, state: PagedState, token: int, taps: SequenceTaps) -> Tensor:
        """The C++ step of one sequence with taps: logits [V]."""
        position = state.cache.length
        seam = StepAttention([state], self.backend, self._inputs_of([state]))
        forward = taps.open(state, position, [token])
        if ("normed", -1) in forward.tapped:  # C++ norms the stream where it makes the logits
            logits = self._step_by_torch([token], [position], seam, forward, [state.adapter])[0]
        else:
            runs = seam.rows.entry_runs() if seam.is_plain else None
            native, sites = self._native_decoder(), forward.tapped
            logits = native.step_tapped(token, position, seam, runs, forward, sites, state.adapter)[0]
        forward.end()
        state.cache.end_step()
        return logits

    def can_draft(self, state: PagedState) -> bool:
        """Whether tokens behind the next can be fed with it, and be taken back: in C++ steps, while no head is cut."""
        method = state.policy.method
        if method.overrides("decode_plan") or method.overrides("after_decode"):
            return False
        if state.policy.heads.calibrated or state.cache.cut.any():
            return False
        return self._has_native_step() and getattr(self.model.config, "windows", None) is None

    def _step(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        seam: StepAttention,
        inputs: LayerInputs,
        additions: Sequence[Addition],
        adapters: Sequence[LoraAdapter | None],
        draws: StepDraws | None,
    ) -> Tensor:
        if not inputs.is_tapped and self._has_native_step():
            native = self._native_decoder()
            if seam.is_plain:
                return native.step(tokens, positions, seam.rows.entry_runs(), additions, adapters)
            return native.step_through(tokens, positions, seam, additions, adapters)
        if self.graphs is not None and seam.is_plain and not inputs.is_tapped:
            unrecorded = (lambda step: self.run_fixed(step, adapters)) if any(adapters) else None
            logits = self.graphs.step(seam.rows, tokens, positions, draws, unrecorded)
            if logits is not None:
                return logits
        return self._step_by_torch(tokens, positions, seam, tap_of(inputs), adapters, draws)

    def _step_by_torch(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        seam: StepAttention,
        tap: Tap,
        adapters: Sequence[LoraAdapter | None],
        draws: StepDraws | None = None,
    ) -> Tensor:
        ids, at = seam.rows.send(tokens, positions, self._buffer, draws)
        logits: Tensor = self.model(ids, attend=seam, positions=at, ops=self.layer_ops(adapters), tap=tap)[:, 0]
        if draws is not None:
            draws.draw(logits)
        return logits

    def run_fixed(self, step: FixedStep, adapters: Sequence[LoraAdapter | None] = ()) -> tuple[Tensor, Tensor]:
        """Launch a step whose numbers lie on the device: logits [B,V], and tokens float64 [B] drawn from them."""
        step.mark()
        ids, at = step.ids, step.positions
        ops = self.layer_ops([*adapters, *[None] * (step.shape.batch - len(adapters))])
        logits: Tensor = self.model(ids, attend=step.attend, positions=at, ops=ops)[:, 0]
        return logits, sample(logits, step.settings, backend=self.backend).double()

    def _inputs_of(self, states: Sequence[PagedState]) -> LayerInputs:
        """Inputs of a step's layers that its methods need."""
        needs = [s.policy.method.needs for s in states if s.policy.method.overrides("after_decode")]
        return LayerInputs(self.model, needs, _adapters(states))

    def _native_decoder(self) -> NativeDecoder:
        few = {key: matrix for key, matrix in self.packed.items() if isinstance(matrix, PackedMatrix)}
        self._native = self._native or NativeDecoder(self.model, few)
        return self._native

    def _has_native_step(self) -> bool:
        """Whether a step is one C++ call; no layer's inputs can be looked at then."""
        like = self.model.output_matrix
        kernel = choose("decode_step", self.backend, like.dtype, like.device.type)
        return self.team is None and is_supported(self.model) and kernel == "cpu_ext"

    def layer_ops(self, adapters: Sequence[LoraAdapter | None] = ()) -> Ops:
        """Linear layers of one pass, whose rows may have adapters; asked for each time, as kernel calls are counted."""
        device = self.model.output_matrix.device.type
        ops = kernel_ops(self.backend, self.pool.keys.dtype, device, self._packed_layers, self.packed.get(HEAD))
        ops = ops if self.team is None else SummedOps(ops, self.team, self.model)
        return LoraOps(ops, adapters) if any(adapters) else ops

    def _track(self, state: PagedState) -> PagedState:
        self._open = [s for s in self._open if not s.is_closed]
        self._open.append(state)
        return state


def _adapters(states: Sequence[PagedState]) -> list[LoraAdapter | None]:
    return [s.adapter for s in states]


def _layers_of(model: Decoder, packed: Mapping[str, SmallMatrix]) -> dict[nn.Linear, SmallMatrix]:
    linears = {f"{name}.weight": part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    return {linears[key]: matrix for key, matrix in packed.items() if key in linears}
