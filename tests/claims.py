"""No claim of sparsity is published that breaks a rule: `python -m tests.claims` reads every claim in the tree."""

from __future__ import annotations

import sys

from services.llm_longctx.methods import methods
from shared.registry.discovery import claims
from shared.sparsity import OPEN, blocking, lint


def main() -> int:
    """Say what blocks a claim and what is open in it; return how many claims are blocked."""
    blocked = 0
    for name, claim in claims().items():
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
