"""The mathematics of integer data: mixtures of rounded logistics, noise that makes integers continuous, PixelCNN."""
