"""schemathesis sends what the gateway's OpenAPI document allows to the whole product: never a 5xx."""

import pytest
from hypothesis import settings

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore")]

EXAMPLES = max(settings.default.max_examples // 50, 1)
"""Requests of each operation: 1 in every run, 8 under the profile `deep`, which take ten minutes."""


def test_no_operation_of_the_product_answers_with_a_server_error(product):
    from tests.e2e.schema_pass import ask_all  # schemathesis, which takes each worker a second or two to import

    operations, _ = ask_all(product.url, EXAMPLES)
    assert operations > 150, "the document has all six services"
