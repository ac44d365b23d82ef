"""Layers over images, events of shape (channels, height, width), each kind in a file."""
