"""Decode steps by the C++ kernel next to this file, float32 or bfloat16 on a CPU, without gradients."""

import weakref
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from services.llm_longctx.kernels.decode_step.low_rank import AdapterTables
from services.llm_longctx.kernels.decode_step.pieces import Addition, StepInPieces, run_tapped
from services.llm_longctx.kernels.decode_step.runs import EntryRuns
from services.llm_longctx.kernels.native import bindings
from services.llm_longctx.kernels.quantized_linear.packing import PackedMatrix
from shared.lm.attention import AttentionFn, Tap
from shared.lm.blocks import Gemma3Block, LlamaBlock
from shared.lm.decoder import Decoder
from shared.lm.lora import PLACES, LoraAdapter
from shared.lm.rope import frequencies, local_frequencies

HEAD = "lm_head.weight"
"""Key of the output matrix among packed ones, tied or not."""


def is_supported(model: Decoder) -> bool:
    """Whether the kernel has a form for this decoder."""
    return model.config.path in {"llama", "gemma3"}


class NativeDecoder:
    """A decoder for steps in C++: reads the module's parameters where they lie, or packed matrices in their place."""

    def __init__(self, model: Decoder, packed: Mapping[str, PackedMatrix] = MappingProxyType({})) -> None:
        """Take a decoder.

        Args:
            model: In eval mode; its parameters must stay where they are.
            packed: Few-bit matrices by official key, the output matrix under `HEAD`.
        """
        self.config, self.dtype = model.config, model.output_matrix.dtype
        self._kept: list[object] = []
        self._packed = packed
        self._adapters = AdapterTables(model)
        gemma = self.config.path == "gemma3"
        c = self.config
        facts = [self.dtype == torch.bfloat16, c.vocab, c.width, c.layers, c.heads, c.kv_heads, c.head_dim, c.hidden]
        block = model.blocks[0]
        scale = float(torch.tensor(c.width**0.5, dtype=self.dtype)) if gemma else 1.0
        factor = block.query_factor if isinstance(block, Gemma3Block) else 1.0
        numbers = [c.norm_eps, 1.0 if gemma else 0.0, scale, factor]
        self._handle = bindings.make_decoder([*map(int, facts), int(gemma)], numbers, self._words(model))
        weakref.finalize(self, bindings.delete_decoder, self._handle)

    def step(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        runs: EntryRuns,
        additions: Sequence[Addition] = (),
        adapters: Sequence[LoraAdapter | None] = (),
    ) -> Tensor:
        """Feed one token per sequence, whose entries are written, and attend over their runs: logits [B,V] float32.

        Each sequence may have an adapter; without any, `adapters` may be left out.
        """
        return self._begin(tokens, positions, runs, additions, adapters).run()

    def step_through(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        attend: AttentionFn,
        additions: Sequence[Addition] = (),
        adapters: Sequence[LoraAdapter | None] = (),
    ) -> Tensor:
        """As `step`, where another attends layer by layer and owns what is written: logits [B,V] float32."""
        step = self._begin(tokens, positions, None, additions, adapters)
        for layer in range(self.config.layers):
            step.mix(layer, attend(layer, *step.rotate(layer), 0))
        return step.run()

    def step_tapped(
        self,
        token: int,
        position: int,
        attend: AttentionFn,
        runs: EntryRuns | None,
        tap: Tap,
        tapped: frozenset[tuple[str, int]],
        adapter: LoraAdapter | None = None,
    ) -> Tensor:
        """As `step` for one sequence, with taps; the pieces between them are the same arithmetic.

        Args:
            token: What is fed.
            position: Its position.
            attend: Attends in layers whose heads are tapped, or everywhere without `runs`.
            runs: What is attended over elsewhere.
            tap: Reads and edits named activations.
            tapped: Names and layers of the sites that it wants; `normed` is not among them.
            adapter: Of the sequence.

        Returns:
            Logits [1,V] float32.
        """
        step = self._begin([token], [position], runs, (), [adapter])
        run_tapped(step, attend, tap, tapped, is_attending=runs is None)
        return step.run()

    def _begin(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        runs: EntryRuns | None,
        additions: Sequence[Addition],
        adapters: Sequence[LoraAdapter | None],
    ) -> StepInPieces:
        fed, tables = self._feed(tokens, positions), self._adapters.find(adapters)
        return StepInPieces(self.config, self.dtype, self._handle, fed, runs, additions, tables)

    def _feed(self, tokens: Sequence[int], positions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        if not all(0 <= token < self.config.vocab for token in tokens):
            raise IndexError(f"tokens are below {self.config.vocab}: {list(tokens)}")
        return np.array(tokens, np.int64), np.array(positions, np.int64)

    def _words(self, model: Decoder) -> list[int]:
        """Addresses in the order of the C++ `Decoder`."""
        config, body = self.config, model.model
        local = config.windows is not None
        tables = [self._keep(frequencies(config)), self._keep(local_frequencies(config)) if local else 0]
        words = [self._keep(body.embed_tokens.weight), self._keep(body.norm.weight), *tables]
        words += self._matrix(HEAD, model.output_matrix, None)
        for layer, block in enumerate(model.blocks):
            for name in PLACES:
                linear = block.get_submodule(name)  # type: ignore[attr-defined]  # blocks of these families are modules
                words += self._matrix(f"model.layers.{layer}.{name}.weight", linear.weight, linear.bias)
            words += [self._keep(weight) for weight in _norm_weights(block)]
            words.append(int(config.windows is not None and config.windows[layer] is not None))
        return words

    def _matrix(self, key: str, weight: Tensor, bias: Tensor | None) -> list[int]:
        if (packed := self._packed.get(key)) is None:
            return [0, self._keep(weight), self._keep(bias)]
        return [packed.bits, self._keep(packed.data), self._keep(bias)]

    def _keep(self, tensor: Tensor | None) -> int:
        """Address of a tensor, which lives as long as this does."""
        if tensor is None:
            return 0
        self._kept.append(tensor := tensor.detach().contiguous())
        return tensor.data_ptr()


def _norm_weights(block: object) -> list[Tensor | None]:
    """Before attention, before the MLP, of q, of k, after attention, after the MLP; None where there is none."""
    if isinstance(block, Gemma3Block):
        attn = block.self_attn
        before = [block.input_layernorm, block.pre_feedforward_layernorm, attn.q_norm, attn.k_norm]
        return [norm.weight for norm in (*before, block.post_attention_layernorm, block.post_feedforward_layernorm)]
    if not isinstance(block, LlamaBlock):
        raise TypeError(f"no form for {type(block).__name__}")
    heads = [block.self_attn.q_norm.weight, block.self_attn.k_norm.weight] if block.qk_norm else [None, None]
    return [block.input_layernorm.weight, block.post_attention_layernorm.weight, *heads, None, None]
