"""How many examples hypothesis draws: `suite` for every run, `deep` (`--hypothesis-profile=deep`) before a release."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "suite", max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("deep", max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def fewer(divisor: int) -> int:
    """Examples of the present profile divided by `divisor`, for tests whose single example takes long; at least 3."""
    return max(3, settings.default.max_examples // divisor)
