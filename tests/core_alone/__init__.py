"""The core without any plug-in: an environment that has none, and what is asked of the core in it."""
