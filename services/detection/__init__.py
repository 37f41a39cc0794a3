"""detection: pollen, road damage, classes, actions, gaze and plans."""
