"""Networks of this room: the tiny decoder that experiments are shown on. What experiments study, they are given."""
