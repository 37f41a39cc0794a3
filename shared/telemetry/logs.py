"""Logs: structlog and the standard library in one form, each line with the ids of its request."""

import logging
import sys
from typing import Any, Literal

import structlog

from shared.telemetry.context import context
from shared.telemetry.device_loss import note_device_loss


def configure_logs(level: str = "INFO", form: Literal["json", "console"] = "console") -> None:
    """Route structlog and the standard library to stderr in one form."""
    render: Any = structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer(colors=False)
    structlog.configure(
        processors=_PROCESSORS,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=render, foreign_pre_chain=_CHAIN))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs whole URLs, also those with a signature


def log(name: str = "fovea") -> Any:
    """A logger whose lines carry request id, service, model and trace of the current context."""
    return structlog.stdlib.get_logger(name)


def _add_context(_logger: Any, _name: str, event: dict[str, Any]) -> dict[str, Any]:
    ctx = context()
    for key in ("request_id", "service", "model"):
        if value := getattr(ctx, key):
            event.setdefault(key, value)
    if ctx.traceparent:
        _, trace, span, *_ = ctx.traceparent.split("-")
        event.setdefault("trace_id", trace)
        event.setdefault("span_id", span)
    return event


_CHAIN: list[Any] = [structlog.stdlib.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True)]
_CHAIN += [_add_context, note_device_loss, structlog.processors.format_exc_info]
_PROCESSORS = [*_CHAIN, structlog.stdlib.ProcessorFormatter.wrap_for_formatter]  # one list: kept loggers hold it
