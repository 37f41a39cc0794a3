"""Request state: what a plug-in loads for a request before the model reads it, such as a session or a document.

Knows neither where it is stored nor what a model makes of it.
"""

from typing import Protocol


class RequestState(Protocol):
    """State of one request; the adapter of its model knows the class. A plug-in loads it (`api.state_loading`)."""

    async def commit(self, answer: str) -> None:
        """Store what the request changed, with its whole answer (JSON), before the end of the answer is sent.

        Raises Conflict: Another request has written since.
        """
        ...
