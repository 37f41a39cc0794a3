"""Circuits as edges: integrated gradients (EAP-IG), pruning (ACDC), and files for other tools."""
