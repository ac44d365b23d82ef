"""Autoencoders whose latents are images, or of several levels, in both languages."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch
from autoencoders import NumPyro, Pyro, both, stripes
from flax import nnx
from scipy.stats import norm

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl._arrays.tree import map_tree, select
from flowppl.images import load_images

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


def test_image_flows_of_the_registry_and_autoregressive_ones_make_posteriors():
    shape = (1, 4, 4)
    posterior = fp.amortized_posterior(shape, 6, "realnvp_image", alpha=None, num_flows=1, hidden_channels=4)
    assert (posterior.y_shape, posterior.context_dim, posterior.y_support) == (shape, 6, (-np.inf, np.inf))
    iaf = fp.amortized_posterior(shape, 6, fp.ImageAutoregressive, hidden_channels=4, num_blocks=1)
    assert (iaf.y_shape, iaf.forward_cost) == (shape, "parallel")
    with pytest.raises(ValueError, match="such as the logit layer of flows of images, which alpha=None leaves out"):
        fpp.FlowVAE(abs, abs, fp.amortized_posterior(shape, 6, "realnvp_image"))


def numpyro_loss(objective, params, vae, x):
    """In one program."""
    loss = jax.jit(objective.loss, static_argnums=(2, 3))
    return loss(jax.random.key(0), params, vae.model, vae.guide, jnp.asarray(x))


# An autoregressive decoder


def with_pixelcnn(lang):
    options = {"levels": 3, "hidden_channels": 4, "num_blocks": 1, "kernel_size": 3, "context_dim": 3}
    pixelcnn = fpp.PixelCNN if lang is Pyro else partial(fnp.PixelCNN.init, jax.random.key(1))
    encoder, decoder = lang.networks(16, 6, 2, 3)
    if lang is Pyro:
        encoder = torch.nn.Sequential(torch.nn.Flatten(), encoder)
        return fpp.FlowVAE(
            encoder, decoder, fp.amortized_posterior(2, 6, None), likelihood=pixelcnn((1, 4, 4), **options)
        )
    flat = nnx.Sequential(lambda x: x.reshape(len(x), -1), encoder)
    return fnp.FlowVAE(flat, decoder, fp.amortized_posterior(2, 6, None), likelihood=pixelcnn((1, 4, 4), **options))


@both
def test_a_decoder_may_be_autoregressive(lang):
    """It is better than pixels that do not depend on each other, whose best log probability is known."""
    x = load_images()[:100, None, 2:6, 2:6].astype(int) // 6
    shares = [[np.mean(pixel == level) for level in range(3)] for pixel in x.reshape(100, -1).T]
    independent = sum(np.sum(share * np.log(np.maximum(share, 1e-9))) for share in np.array(shares))
    vae = with_pixelcnn(lang)
    fit = lang.fit(0, vae, x, num_epochs=30, batch_size=50, warm_up=0, learning_rate=0.03, validation=None)
    found = lang.evaluate(0, vae, fit.params, x, num_samples=50)
    assert independent + 0.5 < found.log_prob < 0
    drawn = lang.call("sample", vae, fit.params, 20)  # it has no mean in closed form
    assert drawn.shape == (20, 1, 4, 4)
    assert set(np.unique(drawn)) <= {0, 1, 2}
    if lang is Pyro:
        loss = pyro.infer.Trace_ELBO(200, vectorize_particles=True).loss(vae.model, vae.guide, vae._rows(x))
    else:
        assert "likelihood" in fit.params
        objective = numpyro.infer.Trace_ELBO(200)
        loss = numpyro_loss(objective, fit.params, vae, x)
    assert abs(found.elbo + loss / 100) < 8 * found.elbo_se


# Several levels

directions = pytest.mark.parametrize("top_down", [True, False], ids=["down", "up"])


def posteriors(top_down, dims=(1, 1)):
    contexts = (6 + 3 if top_down else 6, 6)
    return [fp.amortized_posterior(dim, context, None) for dim, context in zip(dims, contexts, strict=True)]


def two_levels(lang, top_down, *, num_inputs=1, num_outputs=1, dims=(1, 1), decoder=None, **options):
    below = num_inputs, 6 if top_down else dims[0]
    encoders, decoders = zip(
        lang.networks(below[0], 6, dims[0], num_outputs),
        lang.networks(below[1], 6, dims[1], 3, seed=1),
        strict=True,
    )
    decoders = decoders if decoder is None else (decoder, decoders[1])
    priors = [fp.amortized_posterior(dims[0], 3, None), None]
    make = lang.adapter.HierarchicalVAE
    return make(encoders, decoders, posteriors(top_down, dims), priors, top_down=top_down, **options)


def gaussian(lang):
    """The decoder of x = 2 z + 1 + noise."""
    return lang.function(lambda xp, z: (2 * z + 1, xp.log(xp.asarray(0.7))))


def same_in_numpyro(vae, peer):
    """The weights of an autoencoder of Pyro, by the names of NumPyro."""
    params = {}

    def array(leaf):
        return jnp.asarray(leaf.detach().numpy())

    for kind in ("encoder", "decoder"):
        for level, network in enumerate(getattr(vae, f"{kind}s"), 1):
            layer = network[0] if kind == "encoder" else network
            if not isinstance(layer, torch.nn.Linear):
                continue
            tree = {"kernel": array(layer.weight.T), "bias": array(layer.bias)}
            params[f"{kind}{level}$params"] = {"layers": {0: tree}} if kind == "encoder" else tree
    for kind in ("posterior", "prior"):
        for level, flow in enumerate(getattr(vae, f"{kind}s"), 1):
            params[f"{kind}{level}"] = map_tree(
                array, select(flow.bijection.parameters(), flow.transform.weights.tree())
            )
    return params


@directions
def test_levels_have_the_evidence_that_a_grid_gives_in_both_languages(top_down, rng):
    vae = two_levels(Pyro, top_down, decoder=gaussian(Pyro), likelihood="gaussian")
    peer = two_levels(NumPyro, top_down, decoder=gaussian(NumPyro), likelihood="gaussian")
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter += 0.3 * torch.tensor(rng.normal(size=parameter.shape))
    params = same_in_numpyro(vae, peer)
    x, noise = rng.normal(size=(3, 1)), rng.normal(size=(20_000, 3, 2))
    with torch.no_grad():
        log_likelihood, kl, z = vae.terms(torch.tensor(x), torch.tensor(noise))
    for one, other in zip(jax.tree.leaves(peer.terms(params, x, noise)), (log_likelihood, kl, *z), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    # The densities of both levels, on a grid.
    upper, lower = np.meshgrid(np.linspace(-6, 6, 301), np.linspace(-12, 12, 601), indexing="ij")
    linear = map_tree(np.asarray, params["decoder2$params"])
    context = upper[..., None] * linear["kernel"][0] + linear["bias"]
    prior = fp.amortized_posterior(1, 3, None)
    u, log_det = prior.inverse(map_tree(np.asarray, params["prior1"]), lower[..., None], context)
    log_joint = norm.logpdf(upper) + norm.logpdf(u[..., 0]) + log_det
    log_joint = log_joint + norm.logpdf(x[:, None], 2 * lower + 1, 0.7)
    log_evidence = np.log(np.exp(log_joint).sum((1, 2)) * (12 / 300) * (24 / 600))
    weights = np.exp((log_likelihood - kl).numpy() - log_evidence)
    np.testing.assert_array_less(abs(weights.mean(0) - 1), 5 * weights.std(0) / 20_000**0.5 + 1e-3)


def test_a_posterior_relative_to_its_prior_starts_there(rng):
    vae = two_levels(Pyro, True)
    _, kl, _ = vae.terms(torch.tensor(rng.normal(size=(4, 1))), torch.tensor(rng.normal(size=(5, 4, 2))))
    assert abs(kl).max() < 1e-12


@both
@directions
def test_levels_train_and_generate(lang, top_down):
    x = (load_images()[:60] > 7).reshape(60, -1)[:, ::2].astype(float)
    vae = two_levels(lang, top_down, num_inputs=32, num_outputs=32, dims=(3, 2))
    assert (vae.latent_shapes, vae.dim) == (((3,), (2,)), 5)
    fit = lang.fit(0, vae, x, num_epochs=15, batch_size=20, warm_up=0, learning_rate=0.01)
    assert fit.losses[-1] < fit.losses[0] - 0.1
    found = lang.evaluate(0, vae, fit.params, x, num_samples=200)
    assert found.log_prob > found.elbo
    if lang is Pyro:
        objective = pyro.infer.Trace_ELBO(num_particles=400, vectorize_particles=True)
        loss = objective.loss(vae.model, vae.guide, torch.tensor(x))
        z = vae.encode(x[:5], 3)
    else:
        objective = numpyro.infer.Trace_ELBO(num_particles=400)
        loss = numpyro_loss(objective, fit.params, vae, x)
        z = vae.encode(jax.random.key(0), fit.params, x[:5], 3)
    assert abs(found.elbo + loss / 60) < 6 * found.elbo_se
    assert [tuple(each.shape) for each in z] == [(3, 5, 3), (3, 5, 2)]
    assert lang.call("reconstruct", vae, fit.params, x[:5], 3).shape == (3, 5, 32)
    assert set(np.unique(lang.call("sample", vae, fit.params, 50, mean=False))) == {0.0, 1.0}
    way = lang.call("interpolate", vae, fit.params, x[:2], x[2:4], 4)
    assert way.shape == (4, 2, 32)


@both
def test_levels_that_do_not_fit(lang):
    encoders, decoders = zip(lang.networks(9, 6, 3, 9), lang.networks(6, 6, 2, 3, seed=1), strict=True)
    good = {
        "encoders": encoders,
        "decoders": decoders,
        "posteriors": posteriors(True, (3, 2)),
        "priors": [fp.amortized_posterior(3, 3, None), None],
    }

    def make(**changed):
        return lang.adapter.HierarchicalVAE(**good | changed)

    for changed, error, message in (
        ({"encoders": encoders[0]}, TypeError, "encoders must be a list with one entry for each level"),
        ({"priors": [None]}, ValueError, "got 2 encoders, 2 decoders, 2 posteriors, 1 priors"),
        ({"priors": [None, None]}, ValueError, r"priors\[0\] must be a flow that depends on the level above"),
        ({"priors": [fp.realnvp(3), None]}, ValueError, r"priors\[0\] must .* depends on the level above"),
        ({"priors": [fp.amortized_posterior(4, 3, None), None]}, ValueError, r"gives the shape \(3,\), but"),
        ({"posteriors": [fp.realnvp(3), fp.realnvp(2)]}, ValueError, r"posteriors\[0\] must depend on features"),
        ({"likelihood": "poisson"}, ValueError, "likelihood must be one of bernoulli"),
    ):
        with pytest.raises(error, match=message):
            make(**changed)
    vae = make(posteriors=[fp.amortized_posterior(3, 8, None), good["posteriors"][1]])
    with pytest.raises(ValueError, match=r"posteriors\[0\] has context_dim=8, but gets 6 from the encoder and 3 from"):
        lang.fit(0, vae, stripes(), num_epochs=1)


def test_a_flow_over_a_flow_has_the_density_of_their_chain(rng):
    parts = [fp.Coupling(2, hidden_dims=3), fp.ElementwiseAffine(2)]
    params = [map_tree(lambda p: jnp.asarray(rng.normal(size=p.shape)), part.parameters()) for part in parts]
    x = rng.normal(size=(4, 2))
    inner = fnp.Flow(parts[0], params[0])()
    found = fnp.FlowDistribution(inner, fnp.FlowTransform(parts[1], params[1])).log_prob(x)
    chain = fnp.Flow(fp.Chain(parts), {"0": params[0], "1": params[1]})
    np.testing.assert_allclose(found, chain.log_prob(x), rtol=1e-10)


# Smaller data as the upper level


def downscaled(lang):
    """Binary data of four numbers, of which every second is the smaller datum."""
    if lang is Pyro:

        class Decoder(torch.nn.Linear):
            def forward(self, z, y):
                return super().forward(torch.cat([z, y], -1))

        torch.manual_seed(2)
        decoder = Decoder(3, 4)
    else:

        class Decoder(nnx.Linear):
            def __call__(self, z, y):
                return super().__call__(jnp.concatenate([z, y], -1))

        decoder = Decoder(3, 4, rngs=nnx.Rngs(2), param_dtype=float)
    upper = lang.adapter.FlowVAE(*lang.networks(2, 6, 1, 2), fp.amortized_posterior(1, 6, None))
    return lang.adapter.SelfSupervisedVAE(
        lang.networks(4, 6, 1, 1, seed=1)[0],
        decoder,
        fp.amortized_posterior(1, 6, None),
        fp.amortized_posterior(1, 2, None),
        upper=upper,
        downscale=lambda x: x[:, ::2],
    )


def log_bernoulli(logits, x):
    return (x * logits - np.logaddexp(0, logits)).sum(-1)


@both
def test_smaller_data_and_the_rest_have_the_evidence_that_a_grid_gives(lang):
    x = np.random.default_rng(0).integers(0, 2, (6, 4)) * 1.0
    y = x[:, ::2]
    vae = downscaled(lang)
    assert (vae.dim, vae.latent_shape) == (2, (1,))
    params = lang.params(vae, x)
    array = torch.tensor if lang is Pyro else jnp.asarray
    grid = np.linspace(-7, 7, 401)
    width, rows = grid[1] - grid[0], np.repeat(grid[:, None], 6, 0)
    with torch.no_grad():
        logits = np.asarray(vae.decoder(array(rows), array(np.tile(y, (401, 1))))).reshape(401, 6, 4)
        upper = np.asarray(vae.upper.decoder(array(grid[:, None])))[:, None]
    density = norm.pdf(grid)[:, None] * width  # the priors are standard normals at the start
    expected = np.log((density * np.exp(log_bernoulli(logits, x))).sum(0))
    expected += np.log((density * np.exp(log_bernoulli(upper, y))).sum(0))
    found = lang.evaluate(0, vae, params, x, num_samples=4000)
    assert abs(found.log_prob - expected.mean()) < 6 * found.log_prob_se + 1e-3
    if lang is Pyro:
        loss = pyro.infer.Trace_ELBO(400, vectorize_particles=True).loss(vae.model, vae.guide, torch.tensor(x))
    else:
        objective = numpyro.infer.Trace_ELBO(400)
        loss = numpyro_loss(objective, params, vae, x)
    assert abs(found.elbo + loss / 6) < 10 * found.elbo_se


@both
def test_smaller_data_train_and_generate(lang):
    x = np.random.default_rng(0).integers(0, 2, (60, 1)).repeat(4, 1) * 1.0
    vae = downscaled(lang)
    fit = lang.fit(0, vae, x, num_epochs=15, batch_size=30, warm_up=0, learning_rate=0.03, optimizer="adamax")
    assert fit.losses[-1] < fit.losses[0] - 0.1
    drawn = lang.call("sample", vae, fit.params, 50, mean=False)
    assert drawn.shape == (50, 4)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    assert lang.call("reconstruct", vae, fit.params, x[:5], 3).shape == (3, 5, 4)
    with pytest.raises(TypeError, match=r"interpolate by vae\.upper"):
        lang.call("interpolate", vae, fit.params, x[:2], x[2:4])
    with pytest.raises(TypeError, match="upper must be an autoencoder"):
        lang.adapter.SelfSupervisedVAE(vae.encoder, vae.decoder, fp.amortized_posterior(1, 6), upper=1, downscale=abs)
    with pytest.raises(ValueError, match="SelfSupervisedVAE: the posterior must depend on features"):
        lang.adapter.SelfSupervisedVAE(vae.encoder, vae.decoder, fp.realnvp(6), upper=vae, downscale=abs)
