"""Commands of `fovea judge` about systems, collections and answers."""
