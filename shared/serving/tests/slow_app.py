"""A toy whose model takes long to load, as weights and exports do."""

import time
from typing import Any

from shared.serving.build_app import build
from shared.serving.tests.toys import Echo

LOAD_S = 2.0


class Slow(Echo):
    @classmethod
    def load(cls, ctx: Any) -> Any:
        time.sleep(LOAD_S)
        return super().load(ctx)


app = build("slow", servables={Echo.card.name: Slow})
