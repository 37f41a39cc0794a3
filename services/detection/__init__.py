"""detection: pollen, road damage, classes and actions."""
