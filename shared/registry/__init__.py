"""Served models and their discovery: Card, Servable, discovery by package scan, `network()`, weights by digest."""

from shared.registry.card import Card, Limits, Metric, Paper, SamplingDefaults
from shared.registry.discovery import builder, network, networks, servables
from shared.registry.servable import CallContext, Engine, LoadContext, ModelVariant, Servable

__all__ = [
    "CallContext", "Card", "Engine", "Limits", "LoadContext", "Metric", "ModelVariant", "Paper", "SamplingDefaults",
    "Servable", "builder", "network", "networks", "servables",
]  # fmt: skip
