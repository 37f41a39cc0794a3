"""The toys as the app of a service, for replicas that are started in processes of their own."""

from shared.serving.build_app import build
from shared.serving.tests.toys import TOYS

app = build("toy", servables=TOYS)
