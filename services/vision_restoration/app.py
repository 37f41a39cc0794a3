"""The app of `vision-restoration`: what its rooms hold is found by the package scan."""

from shared.serving.build_app import build

app = build("vision-restoration")
