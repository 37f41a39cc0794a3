"""Logs: structlog and the standard library in one form, each line with the ids of its request."""

import logging
import re
import sys
from typing import Any, Literal

import structlog

from shared.telemetry.context import context
from shared.telemetry.device_loss import note_device_loss


def configure_logs(level: str = "INFO", form: Literal["json", "console"] = "console") -> None:
    """Route structlog and the standard library to stderr in one form."""
    console = [_escape_controls, structlog.dev.ConsoleRenderer(colors=False)]
    render: list[Any] = [structlog.processors.JSONRenderer()] if form == "json" else console
    structlog.configure(
        processors=_PROCESSORS,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    render.insert(0, structlog.stdlib.ProcessorFormatter.remove_processors_meta)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=render, foreign_pre_chain=_CHAIN))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs whole URLs, also those with a signature


def log(name: str = "fovea") -> Any:
    """A logger whose lines carry request id, service, model and trace of the current context."""
    return structlog.stdlib.get_logger(name)


def _add_context(_logger: Any, _name: str, event: dict[str, Any]) -> dict[str, Any]:
    ctx = context()
    known = {key: value for key in ("request_id", "service", "model") if (value := getattr(ctx, key))}
    if ctx.traceparent:
        _, known["trace_id"], known["span_id"], *_ = ctx.traceparent.split("-")
    return {**event, **known, **event}


def _escape_controls(_logger: Any, _name: str, event: dict[str, Any]) -> dict[str, Any]:
    """Keep texts of callers in their line; only a traceback has several. JSON escapes by itself."""
    texts = {key: text for key, text in event.items() if isinstance(text, str) and key != "exception"}
    return event | {key: _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text) for key, text in texts.items()}


_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CHAIN: list[Any] = [structlog.stdlib.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True)]
_CHAIN += [_add_context, note_device_loss, structlog.processors.format_exc_info]
_PROCESSORS = [*_CHAIN, structlog.stdlib.ProcessorFormatter.wrap_for_formatter]  # one list: kept loggers hold it
