"""Images to try an autoencoder or a flow of images on."""

from flowppl.autoencoders.images import load_images

__all__ = ["load_images"]
