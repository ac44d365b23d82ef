"""Autoencoders whose latents are images, or of several levels, in both languages."""

import torch
from autoencoders import Pyro, both, stripes

import flowppl as fp

SHAPE = (2, 2, 2)


def image_layer(context_dim=0):
    """A flow of images: a mixing of channels, and couplings of all numbers."""
    couplings = [fp.Reshape(SHAPE, (8,)), fp.realnvp(8, 2, hidden_dims=6, context_dim=context_dim)]
    return fp.Chain([fp.Pixelwise(SHAPE, fp.LU(2)), *couplings, fp.Reshape((8,), SHAPE)])


def of_images(lang, prior):
    encoder, linear = lang.networks(9, 6, 8, 9)
    posterior = fp.amortized_posterior(SHAPE, 6, lambda shape, context_dim: image_layer(context_dim))
    if lang is Pyro:
        decoder = torch.nn.Sequential(torch.nn.Flatten(), linear)
    else:
        decoder = lambda z: linear(z.reshape(len(z), -1))  # noqa: E731
    return lang.adapter.FlowVAE(encoder, decoder, posterior, prior)


@both
def test_latents_may_be_images(lang):
    x = stripes(40)
    vae = of_images(lang, image_layer())
    assert (vae.latent_shape, vae.dim) == (SHAPE, 8)
    fit = lang.fit(0, vae, x, num_epochs=3, batch_size=20, warm_up=0, learning_rate=0.02)
    assert fit.losses[-1] < fit.losses[0]
    found = lang.evaluate(0, vae, fit.params, x, num_samples=20)
    assert found.log_prob > found.elbo
    assert found.active_units <= 8
    assert lang.call("encode", vae, fit.params, x[:5], 3).shape == (3, 5, *SHAPE)
    assert lang.call("reconstruct", vae, fit.params, x[:5], 3).shape == (3, 5, 9)
    assert lang.call("sample", vae, fit.params, 4).shape == (4, 9)
    assert lang.call("interpolate", vae, fit.params, x[:2], x[2:4], 4).shape == (4, 2, 9)
