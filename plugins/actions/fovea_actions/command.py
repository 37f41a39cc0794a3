"""Find actions in a video. FILE holds its features (.npz or .npy)."""

from fovea.cli.commands.run import make_task_app

app = make_task_app("actions", __doc__)
