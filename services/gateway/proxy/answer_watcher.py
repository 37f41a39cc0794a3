"""Work on a request and its answer besides answering it."""

from fovea import plugins
from services.gateway.http.request_context import RequestContext
from services.gateway.proxy.http_client import UpstreamClient
from services.gateway.proxy.replayable_body import ReplayableBody
from services.gateway.routing.replica_registry import ReplicaRegistry
from services.gateway.routing.route_table import Route


class AnswerWatcher:
    """Does nothing.

    A plug-in replaces it by a subclass: entry point `answers` of group `fovea.traffic`. Its methods return at once.
    """

    def __init__(self, registry: ReplicaRegistry, client: UpstreamClient) -> None:
        """Take what requests of its own need."""

    def begin(self, ctx: RequestContext, route: Route, body: ReplayableBody) -> None:
        """See a request before it is sent; set `ctx.recorder` to record the answer."""

    def end(self, ctx: RequestContext, route: Route, body: ReplayableBody) -> None:
        """See a request whose whole answer has been passed on."""

    async def stop(self) -> None:
        """Give up what is under way."""


def build_answer_watcher(registry: ReplicaRegistry, client: UpstreamClient) -> AnswerWatcher:
    """Build the watcher of the installed plug-in, or the one that does nothing."""
    kind: type[AnswerWatcher] = plugins.load_all("fovea.traffic", "answers").get("answers", AnswerWatcher)
    return kind(registry, client)
