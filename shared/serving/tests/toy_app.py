"""The toys as the app of a service, and one that loads slowly, for replicas started in processes of their own."""

import time
from typing import Any

from shared.serving.build_app import build
from shared.serving.tests.toys import TOYS, Echo


class Slow(Echo):
    """Takes long to load, as weights and exports do."""

    @classmethod
    def load(cls, place: Any) -> Any:
        time.sleep(2.0)
        return super().load(place)


app = build("toy", servables=TOYS)
slow = build("slow", servables={Echo.card.name: Slow})
