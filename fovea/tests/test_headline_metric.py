"""Headlines of models whose data is made say `synthetic`, so that no list shows such a figure without the word."""

import pytest

from fovea.headline_metric import HeadlineMetric
from shared.registry.discovery import servables

MADE = {"detection": ["bmn", "bmn-csa", "fovea-planner", "hieraedgenet-synthetic-pollen", "oat"]}


@pytest.mark.parametrize(("service", "name"), [(service, name) for service, names in MADE.items() for name in names])
def test_every_figure_on_made_data_is_called_synthetic(service, name):
    found = servables(service)[name].card.metrics
    figures = [
        HeadlineMetric(each.name, 0.5, None, each.data) for each in found if each.paper is None or each.ours is not None
    ]
    assert figures
    assert [each.name for each in figures if not each.is_synthetic] == []
