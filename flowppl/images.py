"""Images to try an autoencoder on."""

from flowppl.autoencoders.images import load_images

__all__ = ["load_images"]
