"""Recipe of OAT: shelves with scanpaths, and the training."""
