"""Predict where people look. FILE is a picture of a shelf."""

from fovea.cli.commands.run import make_task_app

app = make_task_app("scanpath", __doc__)
