"""`kill -9` under load: each module is one scenario with a `main()`; `python -m loadtests.chaos [NAME …]` runs them."""
