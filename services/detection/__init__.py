"""detection: pollen, road damage and classes."""
