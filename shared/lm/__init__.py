"""Language models: one decoder with named activations and a replaceable attention, its cache, weights and tokenizer.

Knows tensors, files and token ids. Knows nothing about requests, scheduling, attention methods or the web.
"""
