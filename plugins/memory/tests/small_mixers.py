"""Small random mixers: each with its network, and how that network and a prompt's length open a request's session."""

from fovea_memory.adapters.landmark_session import LandmarkRequestSession
from fovea_memory.adapters.session import StatelessRequestSession
from fovea_memory.adapters.titans import TitansRequestSession
from fovea_memory.mixers.deconstructed.networks import DeconstructedLM
from fovea_memory.mixers.landmark.networks import LandmarkGPT
from fovea_memory.mixers.routing.networks import RoutingLM
from fovea_memory.mixers.titans.networks import titans_mac

VOCAB = 42


def _stateless(net, _length):
    return StatelessRequestSession(net.session(1), 256)


MIXERS = {
    "landmark": (
        lambda: LandmarkGPT(VOCAB, 16, 2, 2, 4, 41, 64),
        lambda net, length: LandmarkRequestSession(net.session(1, blocks=2), 0, length, [41]),
    ),
    "titans": (
        lambda: titans_mac(VOCAB, 16, 2, 2, segment=8),
        lambda net, _: TitansRequestSession("m", net.session(1), [41], 256),
    ),
    "routing": (lambda: RoutingLM(VOCAB, 16, 2, 2, 8, 1, 8, 8, 128), _stateless),
    "approximate": (lambda: DeconstructedLM(VOCAB, 16, 2, 2, "approximate", "hybrid", 128), _stateless),
    "nonapproximate": (lambda: DeconstructedLM(VOCAB, 16, 2, 2, "nonapproximate", "hybrid", 128), _stateless),
}
