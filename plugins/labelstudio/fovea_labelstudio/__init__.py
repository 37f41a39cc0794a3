"""Annotation: models draw first labels in Label Studio, and learn from what people make of them."""
