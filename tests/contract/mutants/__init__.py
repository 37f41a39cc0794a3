"""Plug-ins that are wrong in one way each. Nothing of the product finds them; the contract suite refuses them all."""
