"""Attention methods that are broken on purpose, each in one way, and the sound ones that they are made of.

`MUTANTS` says which check of the contract must refuse each of them. None is in the methods' room, so none is found.
"""

from services.llm_longctx.tests.mutants_methods import configuration, eviction, maths, memory, surroundings
from services.llm_longctx.tests.mutants_methods.sound import Dotted, Mean, Window

SOUND = (Window, Dotted, Mean)

_REFUSED = {
    "reference": (maths.Scaled, maths.Foresighted, maths.Faded, maths.FadedOpenly, maths.Summed),
    "engine": (maths.Heavy, eviction.NeverCutsAgain, eviction.ScoresForeignQueries),
    "retention": (
        memory.Forgetful, memory.OneLess, memory.Masked, eviction.KeepsLowest,
        eviction.ForgetsProtection, eviction.CountsOneMore, eviction.KeepsOlderOfEqual     ),
    "effect": (memory.Idle, memory.Secret),
    "estimate": (memory.Short, memory.Boastful, eviction.CountsCutPrompt),
    "fit": (memory.Unfitted, memory.Overshooting, memory.Refusing),
    "chunks": (surroundings.Chunky, surroundings.Local, eviction.ScoresInChunks),
    "preemption": (surroundings.Learning,),
    "prefixes": (surroundings.Hasty, eviction.TrustsCachedQueries),
    "neighbours": (surroundings.Leaking, surroundings.Shared, eviction.ScoresByNeighbours),
    "repeats": (surroundings.Dicing,),
    "knobs": (configuration.Deaf, configuration.HalfDeaf, configuration.Anonymous),
    "plan": (configuration.Planless,),
    "facts": (configuration.Molten, configuration.Twisted),
}  # fmt: skip
MUTANTS = {broken: check for check, all_of_them in _REFUSED.items() for broken in all_of_them}
