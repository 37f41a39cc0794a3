"""LoRA adapters of a served decoder: stored per tenant or in a folder, and held in memory while they are in use."""
