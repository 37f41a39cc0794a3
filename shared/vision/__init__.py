"""Pictures as arrays: decoding with limits, regions of masks, drawing. Knows Pillow and SciPy, no models, no wire."""
