"""Plan over points: their hull, triangulation or shortest tour."""

from fovea.cli.commands.run import make_task_app

app = make_task_app("plan", __doc__)
