"""Headlines of models whose data is made say `synthetic`."""

import pytest

from fovea.headline_metric import HeadlineMetric
from shared.registry import servables

NAMES = ["fovea-landmark-recall", *(f"fovea-titans-{layout}" for layout in ("lmm", "mac", "mag", "mal"))]


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_on_made_data_is_called_synthetic(name):
    figures = [HeadlineMetric(one.name, 0.5, None, one.data) for one in servables("llm-longctx")[name].card.metrics]
    assert figures
    assert all(figure.is_synthetic for figure in figures)
