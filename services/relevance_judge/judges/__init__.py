"""The judges, one file each; each is found by the package scan."""
