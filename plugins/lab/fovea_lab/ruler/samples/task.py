"""Tasks of the RULER form: what is hidden in which haystack, what is asked, how an answer is scored.

Tasks, counts, placement and metric are RULER's (Hsieh et al., 2024, arXiv 2404.06654); prose and words are not, so that
numbers compare methods here and never with published tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Task:
    """One task.

    Attributes:
        name: As in reports.
        kind: Which generator makes its samples.
        max_new_tokens: Most tokens of an answer.
        metric: `all`: the share of the references that were found; `part`: whether any was.
        haystack: `noise`, `prose` or `needles`, for kind `niah`.
        key: Kind of a needle's key.
        value: Kind of its value.
        keys: Needles of different keys.
        values: Values of each key.
        queries: Keys that one question asks for.
        offline: Whether it needs no file of the user's.
    """

    name: str
    kind: Literal["niah", "vt", "cwe", "fwe", "qa"]
    max_new_tokens: int
    metric: Literal["all", "part"] = "all"
    haystack: Literal["noise", "prose", "needles"] = "prose"
    key: Literal["word", "uuid"] = "word"
    value: Literal["number", "uuid"] = "number"
    keys: int = 1
    values: int = 1
    queries: int = 1
    offline: bool = True

    @property
    def max_questions(self) -> int:
        """Most questions that one context can answer."""
        if self.kind != "niah":
            return 1
        return 1000 if self.haystack == "needles" else self.keys // self.queries


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("niah_single_1", "niah", 128, haystack="noise"),
        Task("niah_single_2", "niah", 128),
        Task("niah_single_3", "niah", 128, value="uuid"),
        Task("niah_multikey_1", "niah", 128, keys=4),
        Task("niah_multikey_2", "niah", 128, haystack="needles"),
        Task("niah_multikey_3", "niah", 128, haystack="needles", key="uuid", value="uuid"),
        Task("niah_multivalue", "niah", 128, values=4),
        Task("niah_multiquery", "niah", 128, keys=4, queries=4),
        Task("vt", "vt", 30),
        Task("cwe", "cwe", 120),
        Task("fwe", "fwe", 50),
        Task("qa_1", "qa", 32, "part", offline=False),
        Task("qa_2", "qa", 32, "part", offline=False),
    )
}
"""By name, in the order of reports."""

OFFLINE = tuple(name for name, task in TASKS.items() if task.offline)
"""Tasks that need no file."""
