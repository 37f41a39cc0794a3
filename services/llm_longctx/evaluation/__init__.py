"""What a method costs in quality on a served model: needle grids and fidelity, as routes, jobs and commands."""
