"""Load balancer: picks one of the replicas of a service that are ready.

Without a key the one with the fewest requests in flight. With an `AffinityKey` the one that was last sent what shares
most with it; else its home by rendezvous hashing (Thaler and Ravishankar, 1998), which gateways agree on without
talking to each other. No replica gets more than its bound of the load (Mirrokni, Thorup and Zadimoghaddam, "Consistent
Hashing with Bounded Loads", SODA 2018): what is beyond goes to the next in the same order, and in the end to the least
loaded. Counts for this gateway alone.
"""

import hashlib
import math
import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import lru_cache

from services.gateway.metrics import AFFINITY_PICKS
from services.gateway.routing.affinity import AffinityKey
from services.gateway.routing.replica import Replica

LOAD_FACTOR = 1.25
"""How much more than the mean load a replica may have before what it holds is read again elsewhere."""

FREE_SLOTS = 4
"""Requests that a replica may have whatever the mean, where it works on so many at once."""

MIN_SHARE = 0.5
"""Share of a prompt's blocks that a replica must have been sent before; for less, its home is as good."""

MAX_PLACES = 200_000
"""Hashes whose replica is remembered, some 30 MB; those unused for longest are forgotten."""

_PRIME = 2**61 - 1


class LoadBalancer:
    """Picks among replicas, and remembers which was sent what. Belongs to one event loop."""

    def __init__(self) -> None:
        self._places: OrderedDict[bytes, str] = OrderedDict()

    def pick(self, service: str, replicas: Sequence[Replica], key: AffinityKey | None = None) -> Replica | None:
        """Pick one of `replicas`; None where there is none."""
        if key is None or not replicas:
            return _pick_least_loaded(replicas)
        return self._pick_by_key(service, replicas, key)

    def remember_affinity(self, key: AffinityKey, replica: str) -> None:
        """Remember that a replica holds what a key stands for."""
        for digest in key.chain:
            self._places[digest] = replica
            self._places.move_to_end(digest)
        while len(self._places) > MAX_PLACES:
            self._places.popitem(last=False)

    def _pick_by_key(self, service: str, replicas: Sequence[Replica], key: AffinityKey) -> Replica:
        holder = self._find_holder(replicas, key)
        mean = (sum(replica.in_flight for replica in replicas) + 1) / len(replicas)
        for place, replica in enumerate(_order(replicas, key, holder)):
            if replica.in_flight < max(math.ceil(LOAD_FACTOR * mean), min(replica.slots, FREE_SLOTS)):
                if not place:
                    self.remember_affinity(key, replica.id)
                AFFINITY_PICKS.labels(service, "spilled" if place else "held" if holder else "home").inc()
                return replica
        AFFINITY_PICKS.labels(service, "spilled").inc()
        return min(replicas, key=lambda replica: replica.in_flight)

    def _find_holder(self, replicas: Sequence[Replica], key: AffinityKey) -> Replica | None:
        """The replica that was sent the longest beginning, if that is most of it."""
        for length in range(len(key.chain), math.ceil(MIN_SHARE * len(key.chain)) - 1, -1):
            if (place := self._places.get(key.chain[length - 1])) is not None:
                for replica in replicas:
                    if replica.id == place:
                        return replica
        return None


def _pick_least_loaded(replicas: Sequence[Replica]) -> Replica | None:
    if len(replicas) < 2:
        return replicas[0] if replicas else None
    fewest = min(replica.in_flight for replica in replicas)
    return random.choice([replica for replica in replicas if replica.in_flight == fewest])


def _order(replicas: Sequence[Replica], key: AffinityKey, holder: Replica | None) -> Iterator[Replica]:
    """The holder, then its home, then all others by their weights, which only a home without room makes us sort."""
    if holder is not None:
        yield holder
    factor = int.from_bytes(key.home) % _PRIME or 1
    weights = [_seed(replica.id) * factor % _PRIME for replica in replicas]
    home = replicas[max(range(len(weights)), key=weights.__getitem__)]
    if home is not holder:
        yield home
    for _, place in sorted(zip(weights, range(len(weights)), strict=True), reverse=True):
        if replicas[place] is not holder and replicas[place] is not home:
            yield replicas[place]


@lru_cache(maxsize=2**14)
def _seed(replica: str) -> int:
    """A replica's number, whose product with a key's, modulo a prime, is its weight for that key.

    Carter and Wegman, "Universal Classes of Hash Functions", 1979. One that leaves or joins moves only its own keys.
    """
    return int.from_bytes(hashlib.blake2b(replica.encode(), digest_size=8).digest()) % _PRIME
