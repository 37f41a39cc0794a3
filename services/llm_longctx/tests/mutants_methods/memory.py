"""Methods that hold or foresee the wrong entries."""

from fovea.errors import InvalidOption
from services.llm_longctx.methods import AttentionMethod
from services.llm_longctx.methods.core.hook_results import Footprint, RetentionPolicy
from services.llm_longctx.tests.method_contract.oracle import causal
from services.llm_longctx.tests.mutants_methods.sound import Dotted, Window


class Forgetful(Window):
    """Keeps `recent` - 99 entries instead of `recent` - 1, and `reference` says nothing, as a method once did."""

    def _order(self, positions, view):
        return RetentionPolicy.ends(positions, self.sink, max(self.recent - 99, 0), slide=True)


class OneLess(Window):
    """Keeps an entry too few."""

    def _order(self, positions, view):
        return RetentionPolicy.ends(positions, self.sink, self.recent - 2, slide=True)


class Masked(Dotted):
    """Says that it evicts, and only looks away."""

    actions = frozenset({"eviction"})


class Idle(Window):
    """Says that it acts, and reads and keeps everything."""

    actions = frozenset({"visibility"})
    prefill_plan = AttentionMethod.prefill_plan
    after_prefill = AttentionMethod.after_prefill
    estimate = AttentionMethod.estimate
    head_plan = AttentionMethod.head_plan
    fit = AttentionMethod.fit

    def _mask(self, n):
        return causal(n, n)


class Secret(Dotted):
    """Reads prompts sparsely, and says that it acts in the answer only: its prefixes would be shared with dense."""

    phases = frozenset({"decode"})


class Short(Window):
    """Foresees one entry too few."""

    def estimate(self, config, heads, prompt, new):
        right = super().estimate(config, heads, prompt, new).entries
        return Footprint(tuple(tuple(n - 1 for n in row) for row in right))


class Boastful(Window):
    """Foresees dense."""

    estimate = AttentionMethod.estimate


class Unfitted(Window):
    """Leaves its knobs as they are, whatever the budget."""

    def fit(self, entries, config, plan, prompt, new):
        return self


class Overshooting(Window):
    """Takes the budget of all heads for that of one."""

    def fit(self, entries, config, plan, prompt, new):
        return self.with_knobs(recent=max(entries - self.sink, 1))


class Refusing(Window):
    """Refuses budgets that it meets."""

    def fit(self, entries, config, plan, prompt, new):
        detail = "Nothing fits."
        raise InvalidOption(detail)
