"""The contract of a plug-in, as functions that raise AssertionError, for plug-ins and for mutants."""
