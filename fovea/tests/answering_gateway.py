"""A gateway for verbs that send pictures: it answers as it is told, and remembers what it was asked."""

import contextlib
from types import SimpleNamespace

from shared.errors import Malformed


class AnsweringGateway:
    """Stands in for a `Connection` and for its client."""

    def __init__(self, request, reply):
        self.schema, self.reply, self.asked = request.model_json_schema(), reply, []

    @contextlib.asynccontextmanager
    async def open_async(self):
        """Itself."""
        yield self

    async def default_model(self, task):
        """A model of that task."""
        return f"default-{task}"

    async def model(self, name):
        """Its card."""
        return SimpleNamespace(request_schema=self.schema, name=name)

    async def run(self, task, options, *, pictures, accept=None):
        """What it was told, or a refusal of what is too short to be a picture."""
        self.asked.append((task, dict(options), accept))
        if len(pictures["image"]) < 100:
            raise Malformed("The picture is broken.")
        return self.reply(options, accept)
