"""Load, chaos and benchmarks: what is measured, never what is tested."""
