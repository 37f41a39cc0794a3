"""Head plans: the spec, the makers of each kind and their maths, and the passkey texts that gates are trained on."""
