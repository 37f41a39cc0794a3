"""Layer inputs: what some methods want to see of a layer besides queries and entries. Read only where one asks for it.

The attention input is the residual stream behind the layer's first norm; the output matrix joins the heads. Knows the
decoder's blocks; knows no method.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from shared.lm.decoder import Decoder
from shared.lm.lora import LoraAdapter


class LayerInputs:
    """Of one forward pass. `tap` goes to the decoder where `is_tapped`."""

    def __init__(
        self, model: Decoder, needs: Iterable[frozenset[str]], adapters: Sequence[LoraAdapter | None] = ()
    ) -> None:
        self._adapters = adapters
        wanted = frozenset[str]().union(*needs)
        self._model = model
        self.is_tapped = "hidden" in wanted
        self._has_output = "output" in wanted
        self._hidden: dict[int, Tensor] = {}

    def tap(self, site: str, layer: int, x: Tensor) -> Tensor:
        """Keep a layer's attention input; see `shared.lm.attention.Tap`."""
        if site == "resid_pre":
            block = self._model.blocks[layer]
            norm = block.ln_1 if self._model.config.path == "gpt2" else block.input_layernorm  # type: ignore[attr-defined]
            self._hidden[layer] = norm(x.to(norm.weight.dtype))
        return x

    def attention_input(self, layer: int, row: int = 0) -> Tensor | None:
        """The attention input [T,D] of one sequence of the batch."""
        return self._hidden[layer][row] if layer in self._hidden else None

    def output_matrix(self, layer: int, row: int = 0) -> Tensor | None:
        """The output matrix [D,H·d], with the adapter of one sequence of the batch."""
        if not self._has_output:
            return None
        block = self._model.blocks[layer]
        if self._model.config.path == "gpt2":
            return block.attn.c_proj.weight.T  # type: ignore[attr-defined,no-any-return]
        matrix: nn.Linear = block.self_attn.o_proj  # type: ignore[attr-defined]
        adapter = self._adapters[row] if self._adapters else None
        part = None if adapter is None else adapter.parts.get(matrix)
        return matrix.weight if part is None else part.merge(matrix.weight).to(matrix.weight.dtype)
