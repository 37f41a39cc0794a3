"""The attention-method contract: hooks, what they see and return, the oracle, the registry."""
