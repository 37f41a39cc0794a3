"""Evaluations of attention methods: needle grids, fidelity and RULER-form tasks, as routes, jobs and commands."""
