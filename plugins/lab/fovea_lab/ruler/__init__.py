"""RULER-form evaluation: what attention methods cost on 13 tasks at equal bytes, the question unseen or seen.

Tasks, counts, placement and metric are RULER's; prose, words and seeds are not: numbers compare methods here, and never
with published RULER tables. Its tasks, samples, scores and statistics can be imported from here; they are loaded when
they are named, because some load torch.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "samples.generation": ("generate",),
    "samples.placement": ("DEPTHS", "cwe_rule", "fit", "fwe_counts", "place"),
    "samples.sample": ("render",),
    "samples.task": ("OFFLINE", "TASKS"),
    "samples.variable_chains": ("resolve",),
    "scoring": ("clean", "score", "string_match_all", "string_match_part"),
    "statistics": ("bootstrap", "paired"),
}


def __getattr__(name: str) -> Any:
    """The public name of one of the modules."""
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
