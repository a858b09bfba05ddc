"""Architectures: pretrained encoders, and what is written here from nothing."""
