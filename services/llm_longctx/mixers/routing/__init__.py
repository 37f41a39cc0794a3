"""Routing attention and the Routing Transformer language model."""

from services.llm_longctx.mixers.routing.attention import RoutingOutput, RoutingState, route, update_centroids
from services.llm_longctx.mixers.routing.networks import RoutingLM, RoutingSession

__all__ = ["RoutingLM", "RoutingOutput", "RoutingSession", "RoutingState", "route", "update_centroids"]
