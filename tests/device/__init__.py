"""Every path of the language service, and of the vision models, on a pretended CUDA device: no card is needed."""
