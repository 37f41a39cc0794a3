"""Backbones that come with weights which have seen photographs: what picture models are fine-tuned from."""
