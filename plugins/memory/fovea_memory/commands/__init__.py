"""Commands of the plug-in: `fovea sessions` and `fovea documents`, which talk to a gateway."""
