"""Checks of the source that no library offers: names, and circles of imports. `make lint` runs them."""
