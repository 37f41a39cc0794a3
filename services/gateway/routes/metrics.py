"""`/metrics/services`: the metrics of all replicas in one document, each sample with a `replica` label.

Replicas listen on free ports, so Prometheus can't find them by itself; it scrapes this route instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from shared.telemetry import METRICS_CONTENT_TYPE

router = APIRouter(tags=["health"])


class _MergedCollector(Collector):
    """Families of several documents, joined by name."""

    def __init__(self, documents: Mapping[str, str]) -> None:
        self._documents = documents

    def collect(self) -> Iterable[Metric]:
        """One family per name; every sample carries `replica`."""
        families: dict[str, Metric] = {}
        for replica, text in self._documents.items():
            for found in _parse_families(text):
                family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
                family.samples += [s._replace(labels={**s.labels, "replica": replica}) for s in found.samples]
        return families.values()


def merge_metrics(documents: Mapping[str, str]) -> bytes:
    """Merge metrics in the Prometheus text format, by replica id, into one document."""
    registry = CollectorRegistry()
    registry.register(_MergedCollector(documents))
    return generate_latest(registry)


def _parse_families(text: str) -> Iterator[Metric]:
    try:
        yield from text_string_to_metric_families(text)
    except ValueError:  # a foreign server behind a static upstream may write what the parser does not know
        return


@router.get("/metrics/services", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def services(request: Request) -> Response:
    """The metrics of every replica of every service in the Prometheus text format."""
    gateway = request.app.state.gateway
    replicas = [replica for name in gateway.registry.services for replica in gateway.registry.list_alive(name)]
    texts = await asyncio.gather(*(gateway.client.fetch_text(replica, "/metrics") for replica in replicas))
    documents = {replica.id: text for replica, text in zip(replicas, texts, strict=True) if text is not None}
    return Response(merge_metrics(documents), media_type=METRICS_CONTENT_TYPE)
