"""What is served, and how it is found: Card, Servable, discovery by package scan, `network()`, weights by digest."""

from shared.registry.card import Card, Limits, Metric, Paper
from shared.registry.discovery import builder, network, networks, servables
from shared.registry.servable import Engine, Place, Run, Servable

__all__ = [
    "Card",
    "Engine",
    "Limits",
    "Metric",
    "Paper",
    "Place",
    "Run",
    "Servable",
    "builder",
    "network",
    "networks",
    "servables",
]
