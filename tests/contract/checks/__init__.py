"""What a plug-in owes, as functions that raise AssertionError: the same ones run over plug-ins and over mutants."""
