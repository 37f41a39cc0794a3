"""Commands of the plug-in: `fovea steer`, `fovea sweep` and `fovea compare`, which talk to a gateway."""
