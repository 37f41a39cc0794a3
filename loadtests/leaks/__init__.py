"""Memory of each process of the product under mixed load and fuzzing."""
