"""DHSA, dynamic hierarchical sparse attention: the method, its two generations, the boundary predictor."""

from services.llm_longctx.methods.dhsa.chunks import mass_ratios, select_boundaries

__all__ = ["mass_ratios", "select_boundaries"]
