"""PixelCNN in both languages, against sums over all images."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl._arrays.tree import leaves, map_tree
from flowppl.discrete.pixelcnn import PixelCNN
from flowppl.serialization import read_file, write_file

ADAPTERS = {"pyro": fpp, "numpyro": fnp}
both = pytest.mark.parametrize("language", ADAPTERS)
SMALL = {"hidden_channels": 4, "num_blocks": 1, "kernel_size": 3}


def make(language, *args, seed=0, **options):
    """A network with the same random weights in both languages."""
    options = SMALL | options
    rng = np.random.default_rng(seed)
    params = map_tree(lambda p: rng.normal(size=p.shape), PixelCNN(*args, **options).parameters())
    if language == "numpyro":
        return fnp.PixelCNN(*args, **options, params=map_tree(jnp.asarray, params))
    made = fpp.PixelCNN(*args, **options)
    made.weights.assign(map_tree(torch.as_tensor, params))
    return made


def log_prob(language, images, x, context=None):
    if language == "numpyro":
        return np.asarray(images(context).log_prob(x))
    context = None if context is None else torch.as_tensor(context)
    return images(context).log_prob(torch.as_tensor(x)).detach().numpy()


def all_images(shape, levels):
    return np.array(list(itertools.product(range(levels), repeat=int(np.prod(shape))))).reshape(-1, *shape)


@both
@pytest.mark.parametrize(("shape", "levels", "num"), [((1, 2, 2), 2, 0), ((2, 1, 2), 3, 2)])
def test_probabilities_of_all_images_sum_to_one_and_draws_have_them(language, shape, levels, num):
    images, x = make(language, shape, levels, num_components=num), all_images(shape, levels)
    probability = np.exp(log_prob(language, images, x))
    np.testing.assert_allclose(probability.sum(), 1, atol=1e-12)
    if language == "pyro":
        torch.manual_seed(0)
        draws = images.sample((4000,)).numpy()
    else:
        draws = np.asarray(images.sample(jax.random.key(0), (4000,)))
    assert draws.dtype.kind == "i"
    index = draws.reshape(4000, -1) @ levels ** np.arange(draws[0].size)[::-1]
    found = np.bincount(index, minlength=len(x)) / 4000
    assert (np.abs(found - probability) < 5 * np.sqrt(probability * (1 - probability) / 4000) + 1e-3).all()


def test_both_languages_have_the_same_classes_and_values():
    rng = np.random.default_rng(1)
    x, context = rng.integers(0, 4, size=(3, 2, 4, 3)), np.eye(3)
    options = {"num_components": 2, "context_dim": 3}
    ours, theirs = (log_prob(each, make(each, (2, 4, 3), 4, **options), x, context) for each in ("pyro", "numpyro"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    classes = [log_prob("pyro", make("pyro", (2, 4, 3), 4, **options), x[:1], row) for row in context]
    assert len({float(value[0]) for value in classes}) == 3
    conditional = make("numpyro", (2, 4, 3), 4, **options)(jnp.asarray(context))
    assert conditional.sample(jax.random.key(0), (2,)).shape == (2, 3, 2, 4, 3)
    ours = make("pyro", (2, 4, 3), 4, **options)(torch.as_tensor(context))
    assert ours.sample((2,)).shape == (2, 3, 2, 4, 3)
    assert ours.expand((2, 3)).log_prob(torch.as_tensor(x)).shape == (2, 3)


@both
def test_it_is_trained_by_fit_density(language):
    rng = np.random.default_rng(0)
    x = np.repeat(rng.integers(0, 2, size=(64, 1, 2, 1)), 2, axis=-1)  # columns are the same: the second is known
    options = {"num_epochs": 30, "learning_rate": 0.05, "progress": False, "validation": None}
    if language == "pyro":
        torch.manual_seed(0)
        fit = fpp.fit_density(fpp.PixelCNN((1, 2, 2), 2, **SMALL), x, **options)
    else:
        start = fnp.PixelCNN.init(jax.random.key(0), (1, 2, 2), 2, **SMALL)
        fit = fnp.fit_density(jax.random.key(1), start, x, **options)
    assert fit.losses[0] == pytest.approx(4 * np.log(2), abs=0.5)
    assert fit.losses[-1] < 2.2 * np.log(2)


@both
def test_bad_images_are_told(language):
    images = make(language, (1, 2, 2), 3)
    for x, message in (
        (np.full((3, 1, 2, 2), 0.5), r"integers from 0 to 2, since levels=3, .* by round\(x \* 2\)"),
        (np.full((3, 1, 2, 2), 3), "let levels be 4"),
        (np.zeros((3, 2, 2)), r"shape \(..., 1, 2, 2\), got \(3, 2, 2\); one channel is an axis too"),
        (np.zeros((3, 1, 4, 4)), r"shape \(..., 1, 2, 2\), got \(3, 1, 4, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            log_prob(language, images, x)
    with pytest.raises(ValueError, match="takes no context"):
        log_prob(language, images, np.zeros((3, 1, 2, 2)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="needs a context whose last axis has size 2, got none"):
        log_prob(language, make(language, (1, 2, 2), 3, context_dim=2), np.zeros((3, 1, 2, 2)))


def test_weights_are_those_of_the_network():
    named = {".".join(path) for path, _ in leaves(PixelCNN((1, 2, 2), 2, **SMALL).parameters())}
    assert {name for name, _ in make("pyro", (1, 2, 2), 2).weights.named_parameters()} == named
    flat, structure = jax.tree.flatten(make("numpyro", (1, 2, 2), 2))
    assert len(flat) == len(named)
    assert jax.tree.unflatten(structure, flat).levels == 2


@both
def test_saved_in_one_language_it_is_the_same_in_the_other(language, tmp_path):
    other = {"pyro": "numpyro", "numpyro": "pyro"}[language]
    x = np.array([[[[0, 2], [1, 1]]], [[[2, 2], [0, 1]]]])
    images = make(language, (1, 2, 2), 3, num_components=2, context_dim=2)
    fp.save(tmp_path / "file", images)
    for backend in (language, other):
        found = fp.load(tmp_path / "file", backend=backend)
        assert (type(found), found.levels) == (ADAPTERS[backend].PixelCNN, 3)
        np.testing.assert_allclose(
            log_prob(backend, found, x, np.eye(2)), log_prob(language, images, x, np.eye(2)), rtol=1e-10
        )
    fp.save(tmp_path / "back", found)
    (first, weights), (again, back) = (read_file(tmp_path / name) for name in ("file", "back"))
    assert first | {"backend": other} == again
    assert weights.keys() == back.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(array, back[name], strict=True)


def test_damaged_descriptions_are_refused(tmp_path):
    path = tmp_path / "file"
    fp.save(path, make("pyro", (1, 2, 2), 3))
    config, arrays = read_file(path)
    for change, message in (
        ({"levels": 4}, "must have the shape"),
        ({"levels": 10**12}, "must have the shape"),
        ({"levels": "3"}, "levels must be an integer"),
        ({"shape": [1, 10**9, 10**9]}, "are too large for arrays of"),
        ({"hidden_channels": 10**9}, "must have the shape"),
        ({"num_blocks": 10**7}, "has more units or blocks than"),
        ({"_network": 3}, "has no field '_network'"),
        ({"type": "Dequantized"}, "unknown class 'Dequantized'"),
        ({"type": "Planar"}, "Planar has no field"),
    ):
        write_file(path, config | {"bijection": config["bijection"] | change}, arrays)
        with pytest.raises(ValueError, match=message):
            fp.load(path)
    for change, message in (
        ({"bijection": {"type": "Planar", "dim": 2, "num_flows": 1}}, "describes a Planar, but is of a pixelcnn"),
        ({"kind": "flow"}, "unknown class 'PixelCNN'"),
        ({"base": {}}, "has entries for base, but is of a pixelcnn"),
    ):
        write_file(path, config | change, arrays)
        with pytest.raises(ValueError, match=message):
            fp.load(path)
