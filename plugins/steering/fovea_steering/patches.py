"""Patches: the rows that a `set` writes, given as a vector, as a row per position, or by an earlier answer's capture.

Knows shapes of sites and stored captures; knows no engine.
"""

import numpy as np
import torch
from torch import Tensor

from fovea.api.interventions import Row, SetIntervention
from fovea.errors import InvalidOption, in_field
from fovea_steering.capture_store import CaptureStore, StoredRows
from services.llm_longctx.engine.taps import TokenRange
from shared.lm.activation_names import Site
from shared.lm.config import DecoderConfig

MAX_STRENGTH = 10_000.0
"""Largest number that is added or written: beyond it float16 overflows."""

Placed = tuple[TokenRange, Tensor]
"""Tokens, and what they get: one row [1,1,…] for all, or one for each [1,n,…]."""


class PatchBuilder:
    """Builds the rows of patches for one model and tenant; `files` has the captures, None where none are kept."""

    def __init__(self, config: DecoderConfig, weights: str, files: CaptureStore | None) -> None:
        self._config, self._weights, self._files = config, weights, files

    def build(
        self, given: SetIntervention, site: Site, heads: list[int] | None, tokens: TokenRange, prompt: int, end: int
    ) -> Placed:
        """The tokens that a `set` changes, and its rows.

        Args:
            given: The request.
            site: Where.
            heads: Which of its heads; None for all.
            tokens: Its `positions`.
            prompt: Tokens of the prompt.
            end: Tokens of prompt and answer that are ever fed.

        Raises:
            InvalidOption: Another width or number of rows than is needed, or a position that was not captured.
            NotFound: The capture is gone.
        """
        if given.vector is not None:
            return tokens, shape_vector(self._config, site, torch.tensor(given.vector, device="cpu"))
        places = [at + prompt if at < 0 else at for at in given.positions if isinstance(at, int)]
        if len(set(places)) < len(places) and not given.mean:
            raise InvalidOption("`positions` names a token twice, so it would have two rows.", field="positions")
        if given.values is None:
            return self._read_captured(given, site, tokens, prompt, end)
        with in_field("values"):
            rows = [self._shape_row(site, row, heads) for row in given.values]
        return tokens, torch.stack([rows[i] for i in np.argsort(places)])[None]

    def _shape_row(self, site: Site, row: Row, heads: list[int] | None) -> Tensor:
        """A row of one position as the site has it: [D], or [heads,d] with the given ones in their places."""
        config = self._config
        sizes = {"H": config.heads, "G": config.kv_heads, "d": config.head_dim, "D": config.width}
        whole = torch.zeros([sizes[axis] for axis in site.axes.removeprefix("BT")], device="cpu")
        if not isinstance(row[0], list):
            return shape_vector(config, site, torch.tensor(row, device="cpu"))[0, 0].expand(whole.shape)
        chosen = list(range(len(whole))) if heads is None else heads
        widths = {len(one) for one in row if isinstance(one, list)}
        if whole.dim() == 1 or len(row) != len(chosen) or widths != {whole.shape[1]}:
            wanted = f"{len(whole)} numbers" if whole.dim() == 1 else f"{len(chosen)} lists of {whole.shape[1]} numbers"
            raise InvalidOption(f"A row has {len(row)} lists of {max(widths)} numbers; this site needs {wanted}.")
        whole[chosen] = check_size(torch.tensor(row, device="cpu"))
        return whole

    def _read_captured(self, given: SetIntervention, site: Site, tokens: TokenRange, prompt: int, end: int) -> Placed:
        names = [given.source] if isinstance(given.source, str) else given.source or []
        found = [self._read_file(name, site) for name in names]
        if given.mean:
            rows = [row for one in found for row in _pick(one, given.from_positions)]
            mean = np.mean(rows, 0, dtype=np.float64).astype(np.float32)
            return tokens, torch.tensor(mean, device="cpu")[None, None]
        (stored,) = found
        if isinstance(given.positions, str):
            picked = {at: row for at, row in stored.rows.items() if at in tokens and at < end}
            if not picked:
                detail = f"The capture holds no token of {given.positions!r}; it holds {_list_held(stored)}."
                raise InvalidOption(detail, field="positions")
        else:
            rows = _pick(stored, given.from_positions or given.positions)
            picked = dict(zip([at + prompt if at < 0 else at for at in given.positions], rows, strict=True))
        places = sorted(picked)
        written = torch.tensor(np.stack([picked[at] for at in places]), device="cpu")
        return TokenRange.of(places, prompt, end), written[None]

    def _read_file(self, name: str, site: Site) -> StoredRows:
        if self._files is None:
            detail = "Captures are kept in the object store, and this service has none."
            raise InvalidOption(detail, hint="Give the numbers themselves as `values`.", field="from")
        with in_field("from"):
            found = self._files.read_rows(name, str(site))
        if found.weights != self._weights[:16]:
            raise InvalidOption(f"{name} was captured under other weights.", hint="Capture it again.", field="from")
        return found


def shape_vector(config: DecoderConfig, site: Site, value: Tensor) -> Tensor:
    """A vector [D] or [d] as a site has it: [1,1,D], or [1,1,1,d] for all its heads.

    Raises:
        InvalidOption: It has another width, or is too large.
    """
    check_size(value)
    of_head = site.axes.endswith("d")
    width = config.head_dim if of_head else config.width
    if len(value) != width:
        of = "a head of this site" if of_head else "this site"
        raise InvalidOption(f"The vector has {len(value)} numbers; {of} has {width}.")
    return value.view(1, 1, 1, width) if of_head else value.view(1, 1, width)


def check_size(value: Tensor) -> Tensor:
    """The value; one with too large an entry is refused as an InvalidOption."""
    if not (strongest := float(value.abs().max())) <= MAX_STRENGTH:  # 0 times infinity is neither
        detail = f"The vector's largest entry times its scale is {strongest:.3g}; at most {MAX_STRENGTH:g} is written."
        raise InvalidOption(detail, hint="Choose a smaller scale.")
    return value


def _pick(stored: StoredRows, positions: list[int] | None) -> list[np.ndarray]:
    """The captured rows of positions, all if None; negative ones count back from the end of the captured prompt."""
    if positions is None:
        return list(stored.rows.values())
    places = [at + stored.prompt if at < 0 else at for at in positions]
    if missing := [at for at, place in zip(positions, places, strict=True) if place not in stored.rows]:
        detail = f"The capture holds no token {missing[0]}; it holds {_list_held(stored)}."
        raise InvalidOption(detail, hint="Capture it, or name its place in `from_positions`.", field="from_positions")
    return [stored.rows[place] for place in places]


def _list_held(stored: StoredRows) -> str:
    at = sorted(stored.rows)
    return ", ".join(map(str, at[:12])) + (f", …, {at[-1]}" if len(at) > 12 else "")
