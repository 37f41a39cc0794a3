"""Plain networks of equal size, trained on the same pictures as ours: what our figures are to be compared with."""
