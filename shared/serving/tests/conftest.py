"""Plain log lines: structlog's own default draws tracebacks with all their variables, which takes seconds."""

import pytest
import structlog


@pytest.fixture(scope="session", autouse=True)
def plain_logs():
    processors = [structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()]
    structlog.configure(processors=processors)
    yield
    structlog.reset_defaults()
