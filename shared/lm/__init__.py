"""Language models: one decoder with named taps and one seam, its cache, its weights and its tokenizer.

Knows tensors, files and token ids. Knows nothing about requests, scheduling, attention methods or the web.
"""
