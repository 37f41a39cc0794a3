"""How the small models of trained attention come about: data, loss, measures."""
