"""End of a prompt: replays over what was read, and cuts that wait for all layers.

Nothing of a replay is cached. Knows the decoder and methods' hooks; knows nothing about scheduling.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from services.llm_longctx.engine.attention.decode import HeadViews
from services.llm_longctx.engine.attention.kv_update import apply_retention
from services.llm_longctx.engine.attention.layer_inputs import LayerInputs
from services.llm_longctx.engine.attention.prefill_kernels import over_history
from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.methods.core.hook_inputs import PromptEndView, Replay, ReplayView
from services.llm_longctx.methods.core.hook_results import Dense
from shared.lm.attention import ignore_taps
from shared.lm.decoder import Decoder
from shared.lm.host_transfer import to_device
from shared.lm.lora import LoraOps
from shared.lm.ops import TORCH


class ReplayAttention:
    """`attend` for the tokens of one replay, at positions behind the prompt's; the cache stays as it is.

    Attributes:
        replay: What is replayed.
    """

    def __init__(self, state: PagedState, replay: Replay, inputs: LayerInputs, backend: str) -> None:
        self._s = state
        self.replay = replay
        self._inputs = inputs
        self._backend = backend

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, _offset: int) -> Tensor:
        """Mix values; see `shared.lm.attention.AttentionFn`. The batch is one sequence."""
        s = self._s
        q, k, v = q[0].transpose(0, 1), k[0].transpose(0, 1), v[0].transpose(0, 1)
        keys, values = s.cache.whole_heads(layer, range(k.shape[0]))
        out, _ = over_history(q, torch.cat((keys, k), 1), torch.cat((values, v), 1), Dense(), self._backend)
        if s.policy.layers[layer] is s.policy.method:
            view = ReplayView(
                layer, self.replay, q, k, tuple(bool(x) for x in s.policy.full[layer]), HeadViews(s, layer),
                s.policy.config, s.memos[layer], self._inputs.attention_input(layer), self._inputs.output_matrix(layer),
            )  # fmt: skip
            s.memos[layer] = s.policy.method.after_replay(view)
        return out.transpose(0, 1)[None]


def end_prompt(model: Decoder, state: PagedState, ids: Sequence[int], backend: str) -> None:
    """Replay a prompt that all layers have read, where the method wants it, and cut what waits for all layers."""
    method, length = state.policy.method, state.cache.length
    inputs = LayerInputs(model, [method.needs], [state.adapter])
    ops = TORCH if state.adapter is None else LoraOps(TORCH, [state.adapter])
    for replay in method.replays(ids):
        seam = ReplayAttention(state, replay, inputs, backend)
        rows = to_device(replay.ids, model.output_matrix.device)[None]
        tap = inputs.tap if inputs.is_tapped else ignore_taps
        model(rows, attend=seam, offset=length, keep=0, tap=tap, ops=ops)
    layers = range(state.policy.config.layers)
    own = [layer for layer in layers if state.policy.layers[layer] is method]
    view = PromptEndView(
        length,
        [tuple(bool(x) for x in state.policy.full[layer]) if layer in own else () for layer in layers],
        [HeadViews(state, layer) for layer in layers],
        state.policy.config,
        list(state.memos),
        [output for layer in layers if (output := inputs.output_matrix(layer)) is not None] or None,
    )
    for layer, update in method.after_prompt(view).items():
        held = {g: state.cache.entries(layer, g) for g in update.retain}
        apply_retention(state, layer, update, held, length)
        state.memos[layer] = update.memo
    state.read_ids = []
