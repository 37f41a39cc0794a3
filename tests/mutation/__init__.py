"""Mutation testing: how many small faults in ten core modules does the suite find? `make mutants`.

`modules.toml` lists the modules and their tests, `equivalent.toml` the mutants that no test can find.
"""
