"""The rule that fills networks and pictures, as the service's own tests have it."""

from services.medical_seg.tests.conftest import fill, mask, picture  # noqa: F401  # fixtures
