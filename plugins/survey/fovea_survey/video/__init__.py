"""Video in: frame parsers, the decoder process, the streaming pipeline and its route."""
