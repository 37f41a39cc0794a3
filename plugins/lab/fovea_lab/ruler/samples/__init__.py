"""Samples of the RULER form: tasks, what is hidden and asked, haystacks fitted to a length, and their tokens."""
