"""Which versions of a service answer. Knows nothing about requests."""

from collections.abc import Sequence

from redis.asyncio import Redis

from fovea import plugins
from services.gateway.routing.affinity import AffinityKey


class VersionPolicy:
    """Replicas of all versions answer alike.

    A plug-in replaces it by a subclass: entry point `versions` of group `fovea.traffic`.
    """

    def __init__(self, redis: Redis | None) -> None:
        """Keep what all gateways share in `redis`."""

    async def poll(self) -> None:
        """Read what other gateways were told; called twice a second where there is a Redis."""

    def may_answer(self, service: str, version: str) -> bool:
        """Whether replicas of a version answer requests."""
        return True

    def choose_version(self, service: str, versions: Sequence[str], key: AffinityKey | None) -> str | None:
        """Choose one of several versions that are ready; None where any will do.

        A request that continues a session, a document or a prompt (`key`) must get the same version each time.
        """
        return None


def build_version_policy(redis: Redis | None) -> VersionPolicy:
    """Build the policy of the installed plug-in, or the one that treats all versions alike."""
    kind: type[VersionPolicy] = plugins.load_all("fovea.traffic", "versions").get("versions", VersionPolicy)
    return kind(redis)
