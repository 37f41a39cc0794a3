"""Commands of `fovea` that talk to a gateway, one file each."""
