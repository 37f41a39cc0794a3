"""Inputs of an attention method's hooks: read-only views of one sequence at one layer.

Queries and keys are rotated already; tensors may be views into pages and are never written by a hook. Axes as in
`hook_results`. Knows nothing about pages or requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from shared.lm.config import DecoderConfig


@dataclass(frozen=True, slots=True, eq=False)
class CacheView:
    """Entries of one key/value head, in no promised order; compact copies excluded.

    Attributes:
        k: Keys [n,d].
        v: Values [n,d].
        positions: Logical positions [n] int64; -1 for a virtual entry.
        log_weight: Added to each logit after the scale [n], or None for zeros.
    """

    k: Tensor
    v: Tensor
    positions: Tensor
    log_weight: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A chunk of the prompt before it is attended to; what `prefill_plan` sees.

    A layer's full heads come in one call. Its other heads, where there are any, come in a second one with `evicting`.

    Attributes:
        layer: Which layer.
        q: Queries of the chunk [H',T,d]: those whose key/value head is in `kv_heads`, in order, H' = len(kv_heads)·H/G.
        k: Keys [G',S,d] from position 0 on, the chunk's own last: S = offset + T. With `evicting` only the chunk's own,
            [G',T,d], because the rest may be cut already.
        v: Values, shaped as `k`.
        offset: Position of the first query.
        last: Whether the prompt ends with this chunk.
        kv_heads: Which key/value heads of the layer these are.
        evicting: Whether they are heads that do not keep their whole history.
        boundaries: Chunk borders given by the caller, 0 and S included (DHSA), or None.
        config: The model's facts.
        memo: As the method's last `CacheUpdate` of this layer left it; None at first.
    """

    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    offset: int
    last: bool
    kv_heads: tuple[int, ...]
    evicting: bool
    boundaries: tuple[int, ...] | None
    config: DecoderConfig
    memo: object = None


@dataclass(frozen=True, slots=True, eq=False)
class PostPrefillView:
    """A chunk after it was attended to and written; what `after_prefill` sees.

    Attributes:
        layer: Which layer.
        q: All queries of the chunk [H,T,d]; the last query is q[:, -1].
        offset: Position of the first query.
        last: Whether the prompt ends with this chunk.
        full: [G], which key/value heads keep their whole history.
        heads: Entries of each key/value head now [G], the chunk included. Full heads are in order of position.
        config: The model's facts.
        memo: As left by the method's last hook.
        prompt: Tokens of the whole prompt.
        hidden: The chunk's attention input [T,D], behind the norm; only for methods whose `needs` name it.
        output: The output matrix [D,H·d]; likewise.
    """

    layer: int
    q: Tensor
    offset: int
    last: bool
    full: tuple[bool, ...]
    heads: Sequence[CacheView]
    config: DecoderConfig
    memo: object = None
    prompt: int = 0
    hidden: Tensor | None = None
    output: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens read so far, the chunk included."""
        return self.offset + self.q.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class DecodeView:
    """One decode step; what `decode_plan` and `after_decode` see.

    Attributes:
        layer: Which layer.
        q: The query of the new token [H,d].
        position: Its position.
        prompt: Tokens of the prompt; the token fed first after it has step number 1.
        full: [G], which key/value heads keep their whole history.
        heads: Entries of each key/value head [G], the new one included; gathered on access, which costs.
        compact: Entries in each head's compact run [G], before this step's own is appended.
        config: The model's facts.
        memo: As left by the method's last hook.
        hidden: The token's attention input [1,D], behind the norm; only for methods whose `needs` name it.
        output: The output matrix [D,H·d]; likewise.
    """

    layer: int
    q: Tensor
    position: int
    prompt: int
    full: tuple[bool, ...]
    heads: Sequence[CacheView]
    compact: tuple[int, ...]
    config: DecoderConfig
    memo: object = None
    hidden: Tensor | None = None
    output: Tensor | None = None

    @property
    def number(self) -> int:
        """Which decode step this is, from 1."""
        return self.position - self.prompt + 1


@dataclass(frozen=True, slots=True, eq=False)
class ScoringView:
    """Cached entries to be scored; what `EvictionMethod.score` sees. float32 or wider, whatever the cache holds.

    The G' key/value heads of a view hold the same number of entries n. A layer's heads come in one view, or in several
    where they hold different numbers; heads that keep their whole history come in none.

    Attributes:
        layer: Which layer.
        q: The last queries [H',w,d], oldest first: of positions tokens-w … tokens-1, H' = G'·H/G. The last one is
            always there; `EvictionMethod.query_window` asks for more.
        k: Keys [G',n,d], in order of position.
        v: Values [G',n,d].
        positions: Their positions [G',n] int64, ascending.
        tokens: Tokens so far; the next one has this position.
        kv_heads: Which of the heads that `summary` tells about these are.
        theta: Angle per position of each rotary pair [d/2]; None where keys are not rotated.
        summary: Result of `EvictionMethod.summarize` over all tokens, for all heads of the layer; or None.
    """

    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    positions: Tensor
    tokens: int
    kv_heads: tuple[int, ...] = ()
    theta: Tensor | None = None
    summary: object = None


@dataclass(frozen=True, slots=True, eq=False)
class ReadTokens:
    """Tokens that were just read at one layer; what `EvictionMethod.summarize` sees.

    Attributes:
        layer: Which layer.
        q: Their queries [H,T,d], rotated.
        offset: Position of the first.
        theta: As in `ScoringView`.
        hidden: Their attention input [T,D], where the method needs it.
        kv_heads: Which key/value heads of the layer the queries are of.
        is_decoding: Whether this is a decode step.
    """

    layer: int
    q: Tensor
    offset: int
    theta: Tensor | None = None
    hidden: Tensor | None = None
    kv_heads: tuple[int, ...] = ()
    is_decoding: bool = False


@dataclass(frozen=True, slots=True)
class Replay:
    """Tokens to run over a prompt that was read, to see what they look at; nothing of them is kept.

    Attributes:
        begin: First position of the prompt that they repeat.
        end: The position behind the last.
        ids: The tokens.
    """

    begin: int
    end: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ReplayView:
    """A replay at one layer; what `after_replay` sees.

    Attributes:
        layer: Which layer.
        replay: The replay.
        q: Queries of its tokens [H,T,d], at positions that go on from the prompt's.
        k: Their keys [G,T,d], which are in no head.
        full: [G], which key/value heads keep their whole history.
        heads: The prompt's entries of each key/value head [G].
        config: The model's facts.
        memo: As left by the method's last hook.
        hidden: Their attention input [T,D], and
        output: the output matrix [D,H·d], for methods whose `needs` name them.
    """

    layer: int
    replay: Replay
    q: Tensor
    k: Tensor
    full: tuple[bool, ...]
    heads: Sequence[CacheView]
    config: DecoderConfig
    memo: object = None
    hidden: Tensor | None = None
    output: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PromptEndView:
    """A prompt that all layers have read; what `after_prompt` sees.

    Attributes:
        tokens: Its length.
        full: [L][G], which key/value heads keep their whole history.
        heads: Entries of each key/value head [L][G]; gathered on access.
        config: The model's facts.
        memos: As left by the method's last hooks [L].
        outputs: Output matrices [D,H·d] per layer, for methods whose `needs` name them.
    """

    tokens: int
    full: Sequence[tuple[bool, ...]]
    heads: Sequence[Sequence[CacheView]]
    config: DecoderConfig
    memos: Sequence[object]
    outputs: Sequence[Tensor] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class AttentionOutput:
    """Attention's result, before the output projection; what `epilogue` sees. In decode T = 1.

    Attributes:
        layer: Which layer.
        q: Queries [H,T,d].
        heads: Entries of each key/value head [G], the new ones included; gathered on access.
        out: Mixed values [H,T,d].
        lse: Natural-log sum of exp of each row's scaled logits [H,T].
        offset: Position of the first query.
        calibrated: Query heads of this layer that `HeadRoles.calibrated` names, ascending.
        decoding: Whether this is a decode step.
        last: Whether the prompt ends with this chunk; true in decode.
        config: The model's facts.
        memo: As left by the method's last hook.
    """

    layer: int
    q: Tensor
    heads: Sequence[CacheView]
    out: Tensor
    lse: Tensor
    offset: int
    calibrated: tuple[int, ...]
    decoding: bool
    last: bool
    config: DecoderConfig
    memo: object = None
