"""Decoder passes: one decoder's chunks and steps, in C++, as recorded graphs, or layer by layer.

Its matrices may have few bits, adapters, or parts in other processes. Knows forms of the decoder and of a step; knows
nothing about methods or whose turn it is.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

from torch import Tensor, nn

from services.llm_longctx.engine.attention.decode import StepAttention
from services.llm_longctx.engine.device.fixed_step import FixedStep
from services.llm_longctx.engine.device.graph_steps import open_graphs
from services.llm_longctx.kernels import Addition, NativeDecoder, PackedMatrix, SmallMatrix, layer_ops, sample
from services.llm_longctx.kernels.decode_step import HEAD, is_supported
from services.llm_longctx.kernels.decoder_ops import NativeOps, PackedPass
from services.llm_longctx.kernels.dispatch import choose
from services.llm_longctx.kv_cache import PagePool
from shared.lm.attention import AttentionFn, Tap, ignore_taps
from shared.lm.decoder import Decoder
from shared.lm.host_transfer import DeviceBuffer, to_device
from shared.lm.lora import LoraAdapter, LoraOps
from shared.lm.ops import Ops
from shared.lm.tensor_parallel import SummedOps, Team


class DecoderPasses:
    """Passes of one decoder over the entries of a pool, on a back end of the kernels.

    Attributes:
        graphs: Decode steps that are recorded, on a device that can.
    """

    def __init__(
        self, model: Decoder, pool: PagePool, backend: str, packed: Mapping[str, SmallMatrix], team: Team | None
    ) -> None:
        """Take a decoder, its few-bit matrices by official key, and the processes that hold it together, if any."""
        self._model, self._backend, self._packed, self._team = model, backend, packed, team
        self._buffer = DeviceBuffer(pool.device)
        self.graphs = open_graphs(self.run_fixed, pool, backend)
        linears = {f"{name}.weight": part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
        self._layers = {linears[key]: matrix for key, matrix in packed.items() if key in linears}
        few = {layer: matrix for layer, matrix in self._layers.items() if isinstance(matrix, PackedMatrix)}
        self._pass = PackedPass(model, few) if few and PackedPass.is_possible(model, few) else None

    def ops(self, adapters: Sequence[LoraAdapter | None] = ()) -> Ops:
        """Linear layers of one pass, whose rows may have adapters; asked for each time, as kernel calls are counted."""
        like = self._model.output_matrix
        ops = layer_ops(self._backend, like.dtype, like.device.type, self._layers, self._packed.get(HEAD))
        ops = ops if self._team is None else SummedOps(ops, self._team, self._model)
        return LoraOps(ops, adapters) if any(adapters) else ops

    def read(
        self,
        chunk: Sequence[int],
        attend: AttentionFn,
        offset: int,
        keep: int | None,
        tap: Tap,
        adapter: LoraAdapter | None,
    ) -> Tensor:
        """Logits [1,keep,V] of a chunk of tokens at positions `offset` …; see `Decoder.forward`."""
        ops = self.ops([adapter])
        if self._pass is not None and tap is ignore_taps and isinstance(ops, NativeOps):
            return self._pass.run(chunk, attend, offset, keep, ops)
        ids = to_device(list(chunk), self._model.output_matrix.device)[None]
        logits: Tensor = self._model(ids, attend=attend, offset=offset, keep=keep, ops=ops, tap=tap)
        return logits

    @property
    def has_native_step(self) -> bool:
        """Whether a decode step is one C++ call; no layer's inputs can be looked at then."""
        like = self._model.output_matrix
        kernel = choose("decode_step", self._backend, like.dtype, like.device.type)
        return self._team is None and is_supported(self._model) and kernel == "cpu_ext"

    @cached_property
    def native(self) -> NativeDecoder:
        """The decoder in C++."""
        few = {key: matrix for key, matrix in self._packed.items() if isinstance(matrix, PackedMatrix)}
        return NativeDecoder(self._model, few)

    def step(self, seam: StepAttention, additions: Sequence[Addition], tap: Tap) -> Tensor:
        """Logits [B,V] of a decode step: one call of C++, a recorded graph, or layer by layer; tapped, always that.

        Additions are for a step in C++. Raises ValueError: a GPT-2 position behind its table.
        """
        self._model.check_positions(max(seam.rows.positions) + 1)
        if tap is not ignore_taps:
            return self.run_layers(seam, tap)
        rows, adapters = seam.rows, seam.rows.adapters
        if self.has_native_step:
            if seam.is_plain:
                return self.native.step(rows.tokens, rows.positions, rows.entry_runs(), additions, adapters)
            return self.native.step_through(rows.tokens, rows.positions, seam, additions, adapters)
        if self.graphs is not None and seam.is_plain:
            unrecorded = (lambda step: self.run_fixed(step, adapters)) if any(adapters) else None
            if (logits := self.graphs.step(rows, unrecorded)) is not None:
                return logits
        return self.run_layers(seam, tap)

    def run_layers(self, seam: StepAttention, tap: Tap) -> Tensor:
        """Logits [B,V] of a decode step, layer by layer."""
        rows = seam.rows
        ids, at = rows.send(self._buffer)
        logits: Tensor = self._model(ids, attend=seam, positions=at, ops=self.ops(rows.adapters), tap=tap)[:, 0]
        if rows.draws is not None:
            rows.draws.draw(logits)
        return logits

    def run_fixed(self, step: FixedStep, adapters: Sequence[LoraAdapter | None] = ()) -> tuple[Tensor, Tensor]:
        """Launch a step whose numbers lie on the device: logits [B,V], and tokens float64 [B] drawn from them."""
        step.mark()
        ops = self.ops([*adapters, *[None] * (step.shape.batch - len(adapters))])
        logits: Tensor = self._model(step.ids, attend=step.attend, positions=step.positions, ops=ops)[:, 0]
        return logits, sample(logits, step.settings, backend=self._backend).double()
