"""The rule that fills networks and pictures, as the service's own tests have it."""

from services.vision_restoration.tests.conftest import fill, load_from, picture, slim, stored  # noqa: F401  # fixtures
