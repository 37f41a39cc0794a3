"""Routing attention and the Routing Transformer language model."""

from fovea_memory.mixers.routing.attention import RoutingOutput, RoutingState, route, update_centroids
from fovea_memory.mixers.routing.networks import RoutingLM, RoutingSession

__all__ = ["RoutingLM", "RoutingOutput", "RoutingSession", "RoutingState", "route", "update_centroids"]
