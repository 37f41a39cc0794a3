"""RULER-form evaluation: what attention methods cost on 13 tasks at equal bytes, the question unseen or seen.

Tasks, counts, placement and metric are RULER's; prose, words and seeds are not: numbers compare methods here, and never
with published RULER tables.
"""

from services.llm_longctx.evaluation.ruler.chains import resolve
from services.llm_longctx.evaluation.ruler.generation import generate
from services.llm_longctx.evaluation.ruler.placement import DEPTHS, cwe_rule, fit, fwe_counts, place
from services.llm_longctx.evaluation.ruler.sample import Rendered, RulerSample, render
from services.llm_longctx.evaluation.ruler.scoring import clean, score, string_match_all, string_match_part
from services.llm_longctx.evaluation.ruler.statistics import Interval, Paired, bootstrap, compare_paired
from services.llm_longctx.evaluation.ruler.task import OFFLINE, TASKS, Task

paired = compare_paired

__all__ = [
    "DEPTHS",
    "OFFLINE",
    "TASKS",
    "Interval",
    "Paired",
    "Rendered",
    "RulerSample",
    "Task",
    "bootstrap",
    "clean",
    "cwe_rule",
    "fit",
    "fwe_counts",
    "generate",
    "paired",
    "place",
    "render",
    "resolve",
    "score",
    "string_match_all",
    "string_match_part",
]
