"""DHSA, dynamic hierarchical sparse attention: the method, its two generations, the boundary predictor."""
