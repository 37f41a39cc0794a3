"""What the engine does otherwise on a device: tokens drawn beside the logits, and steps recorded as graphs."""
