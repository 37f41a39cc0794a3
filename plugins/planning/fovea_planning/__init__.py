"""Plans over points, and the order in which people look at objects: models, solvers, commands and weights."""
