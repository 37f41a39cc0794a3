"""No claim of sparsity is published that breaks a rule: `python -m tests.claims` reads every claim in the tree.

A model whose Card calls it sparse needs one.
"""

import re
import sys
from collections.abc import Mapping

from services.llm_longctx.methods import methods
from shared.registry import Card, servables
from shared.registry.discovery import SERVICES, claims
from shared.sparsity import OPEN, SparsityClaim, blocking, lint

_SPARSE = re.compile(r"\bspars(e|ity|ely)\b", re.IGNORECASE)


def main() -> int:
    """Read the tree; return how much may not be published as it is."""
    return read(claims()) + claimless([kind.card for service in SERVICES for kind in servables(service).values()])


def claimless(cards: list[Card]) -> int:
    """Say which models call themselves sparse and claim nothing; return how many."""
    bare = [card for card in cards if card.sparsity is None and _SPARSE.search(" ".join((card.summary, *card.notes)))]
    for card in bare:
        sys.stdout.write(f"{card.name}: blocks: its Card calls it sparse, and it carries no SparsityClaim.\n")
    return len(bare)


def read(published: Mapping[str, SparsityClaim]) -> int:
    """Say what blocks a claim and what is open in it; return how many claims are blocked."""
    blocked = 0
    for name, claim in published.items():
        stops = blocking(claim)
        blocked += bool(stops)
        lines = [*stops, *(finding for finding in lint(claim) if finding.rule in OPEN and finding not in stops)]
        for finding in lines:
            state = "blocks" if finding in stops else "open"
            sys.stdout.write(f"{name}: {finding.rule} {state}: {finding.message}\n")
    for name, method in methods().items():
        if method.sparsity is None and method.actions & SPARSE:
            sys.stdout.write(f"longctx/{name}: no claim: it reads or keeps less than everything, and claims nothing.\n")
    return blocked


SPARSE = {"visibility", "eviction", "copy"}
"""Actions by which an attention method is sparse; it may be served without a claim, but not be called so."""


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
