"""Contract of attention methods: the base classes, what hooks see and return, the oracle, the registry."""
