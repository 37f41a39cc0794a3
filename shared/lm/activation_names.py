"""Names of activations: the sites that exist, their axes, and how a name is parsed.

Knows names and shapes. Knows nothing about edits, captures or how a decoder computes.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from fovea.errors import InvalidOption, TooLarge
from shared.lm.config import DecoderConfig

SITES = (
    dict.fromkeys(("embed", "resid_pre", "resid_mid", "resid_post"), "BTD")
    | {"q": "BTHd", "k": "BTGd", "v": "BTGd", "q_rot": "BTHd", "k_rot": "BTGd"}
    | {"scores": "BHTS", "pattern": "BHTS", "z": "BTHd"}
    | dict.fromkeys(("attn_out", "mlp_out", "final", "normed"), "BTD")
)
"""Site → axes: B batch, T tokens, S tokens with the cached ones, H query heads, G key/value heads, d, D widths."""

UNLAYERED_SITES = frozenset({"embed", "final", "normed"})
"""Sites that exist once, not per layer."""

WEIGHT_SITES = frozenset({"scores", "pattern"})
"""Sites that only the eager kernel has."""


class InvalidTap(InvalidOption, ValueError):
    """A site, layer, head or position that this model does not have; the detail lists the choices."""


class CaptureTooLarge(TooLarge, ValueError):
    """A capture over `max_cells`; the detail has the sizes and the ways out."""


@dataclass(frozen=True, slots=True)
class SiteScope:
    """Sizes of one forward: B rows of T new tokens behind `offset` cached ones; `more` may follow in later calls."""

    rows: int
    tokens: int
    offset: int
    more: bool
    config: DecoderConfig

    @property
    def total(self) -> int:
        """S: cached and new tokens."""
        return self.offset + self.tokens

    def heads(self, axes: str) -> int | None:
        """How many heads a site with `axes` has; None for a headless one."""
        return self.config.heads if "H" in axes else self.config.kv_heads if "G" in axes else None


@dataclass(frozen=True, slots=True)
class Site:
    """One activation of one forward; `parse_layer` is −1 for those that exist once."""

    name: str
    layer: int

    @property
    def axes(self) -> str:
        """Letters of its axes."""
        return SITES[self.name]

    def __str__(self) -> str:
        """Return its name, as it is parsed."""
        return self.name if self.name in UNLAYERED_SITES else f"{self.name}.{self.layer}"


def parse_site(text: str, config: DecoderConfig, sites: Collection[str] = tuple(SITES)) -> Site:
    """Parse `z.3` or `final`, one of `sites`; `InvalidTap` if there is no such site or layer."""
    name, dot, number = text.partition(".")
    if name not in sites or (name in UNLAYERED_SITES) == bool(dot):
        known = ", ".join(s if s in UNLAYERED_SITES else f"{s}.<layer>" for s in sites)
        raise InvalidTap(f"There is no site {text!r}; sites are {known}.", field=text)
    if name in UNLAYERED_SITES:
        return Site(name, -1)
    return Site(name, parse_layer(number, config, text))


def parse_layer(number: int | str, config: DecoderConfig, offender: str) -> int:
    """Parse a layer index; `InvalidTap` if it is out of range."""
    # One spelling per layer: captures are returned under the name that they were asked for by.
    if not re.fullmatch(r"0|[1-9][0-9]{0,8}", str(number)) or int(number) >= config.layers:
        raise InvalidTap(f"{offender!r} names layer {number}; layers are 0…{config.layers - 1}.", field=offender)
    return int(number)


def resolve_indices(indices: int | Iterable[int], size: int, what: str) -> list[int]:
    """Resolve indices into an axis of `size`; negative ones count from its end; `InvalidTap` if one is out of range."""
    indices = [indices] if isinstance(indices, int) else [int(i) for i in indices]
    for i in indices:
        if not -size <= i < size:
            detail = f"There is no {what} {i}; choices are 0…{size - 1}, or −{size}…−1 from the end."
            raise InvalidTap(detail, field=what)
    return [i % size for i in indices]


def to_local_positions(positions: int | Iterable[int], extent: SiteScope) -> list[int]:
    """Map positions of the whole sequence to indices of this forward's tokens; others are left out.

    With a cache, positions may also lie ahead: an edit given for a whole generation acts when its token comes.
    """
    all_positions = [positions] if isinstance(positions, int) else [int(p) for p in positions]
    inside = [p for p in all_positions if not (extent.more and p >= extent.total)]
    return [p - extent.offset for p in resolve_indices(inside, extent.total, "position") if p >= extent.offset]
