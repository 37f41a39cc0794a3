"""Attention methods that are broken on purpose, each in one way, and the sound ones that they are made of.

`MUTANTS` says which check of the contract must refuse each of them. None is in the methods' room, so none is found.
"""

from services.llm_longctx.tests.mutants_methods.configuration import (
    Anonymous,
    Deaf,
    HalfDeaf,
    Molten,
    Planless,
    Twisted,
)
from services.llm_longctx.tests.mutants_methods.eviction import (
    CountsCutPrompt,
    CountsOneMore,
    ForgetsProtection,
    FreesNothing,
    KeepsLowest,
    KeepsOlderOfEqual,
    NeverCutsAgain,
    ScoresByNeighbours,
    ScoresForeignQueries,
    ScoresInChunks,
    TrustsCachedQueries,
)
from services.llm_longctx.tests.mutants_methods.maths import (
    Faded,
    FadedOpenly,
    Foresighted,
    Heavy,
    Regrouped,
    Scaled,
    Summed,
    Zeros,
)
from services.llm_longctx.tests.mutants_methods.memory import (
    Boastful,
    Forgetful,
    Frozen,
    Humble,
    Idle,
    Masked,
    OneLess,
    Overshooting,
    Refusing,
    Secret,
    Short,
    Unfitted,
    WrongEnd,
)
from services.llm_longctx.tests.mutants_methods.sound import Dotted, Mean, Window
from services.llm_longctx.tests.mutants_methods.surroundings import (
    Chunky,
    Dicing,
    Hasty,
    Leaking,
    Learning,
    Local,
    Shared,
)

__all__ = ["MUTANTS", "SOUND"]

SOUND = (Window, Dotted, Mean)

MUTANTS = {
    Zeros: "reference",
    Scaled: "reference",
    Regrouped: "reference",
    Foresighted: "reference",
    Faded: "reference",
    FadedOpenly: "reference",
    Summed: "reference",
    Heavy: "engine",
    Forgetful: "retention",
    OneLess: "retention",
    WrongEnd: "retention",
    Masked: "retention",
    Idle: "effect",
    Secret: "effect",
    Humble: "estimate",
    Short: "estimate",
    Boastful: "estimate",
    Frozen: "estimate",
    Unfitted: "fit",
    Overshooting: "fit",
    Refusing: "fit",
    Chunky: "chunks",
    Local: "chunks",
    Learning: "preemption",
    Hasty: "prefixes",
    Leaking: "neighbours",
    Shared: "neighbours",
    Dicing: "repeats",
    Deaf: "knobs",
    HalfDeaf: "knobs",
    Anonymous: "knobs",
    Planless: "plan",
    Molten: "facts",
    Twisted: "facts",
    KeepsLowest: "retention",
    ForgetsProtection: "retention",
    CountsOneMore: "retention",
    KeepsOlderOfEqual: "retention",
    FreesNothing: "retention",
    NeverCutsAgain: "engine",
    ScoresInChunks: "chunks",
    ScoresByNeighbours: "neighbours",
    TrustsCachedQueries: "prefixes",
    ScoresForeignQueries: "engine",
    CountsCutPrompt: "estimate",
}
"""Broken methods, and the check that must refuse each."""
