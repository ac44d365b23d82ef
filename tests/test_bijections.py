"""What every bijection promises: both directions, the same numbers everywhere, exact determinants."""

import copy
import itertools
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from catalogue import (
    AUTODIFF,
    BIJECTIONS,
    ENDS,
    IMAGE_RECIPES,
    RECIPES,
    NumpyDraws,
    context_for,
    draw,
    merged,
    numpy,
    to,
)

import flowppl as fp
from flowppl._arrays import tree as _tree
from flowppl.bijections.conditional import _parts

ALL = BIJECTIONS | ENDS | RECIPES | IMAGE_RECIPES
TOLERANCE = {"parallel": 1e-10, "sequential": 1e-10, "iterative": 1e-8}


# One row of each kind. JAX compiles for half a second in each row and property, of the same mathematics as the other
# libraries: what is not of JAX itself is held for these in `make test`, and for every row under `make stress`.
IN_JAX = {
    "planar-conditional",
    "sylvester-householder",
    "elementwise-mixture",
    "coupling-spline",
    "autoregressive",
    "triangular-affine",
    "stack-conditional",
    "chain-reversible",
    "repeat-scan",
    "image-coupling",
    "log-tails",
}


def in_jax(names, *values):
    """Each name with "jax", or with one of the values in turn."""
    pairs = spread(names, *values) if values else [(name, "jax") for name in names]
    return [pytest.param(*pair, marks=() if pair[0] in IN_JAX else pytest.mark.stress) for pair in pairs]


def spread(names, *values):
    """Pairs of each name with one of the values, in turn: they cover together what a full product covers slowly."""
    return [(name, values[i % len(values)]) for i, name in enumerate(names)]


def call(direction, bijection, params, event, context=None, namespace="numpy"):
    """The result of one direction, computed by a library, as NumPy arrays."""
    function = getattr(bijection, direction)
    if namespace == "jax":
        function = jax.jit(function)  # one program compiles sooner than its operations one by one
    event, log_det = function(merged(bijection, params, namespace), to(namespace, event), to(namespace, context))
    return numpy(event), numpy(log_det)


def start_shape(bijection, direction):
    """The shape of one event on the side that a direction starts from."""
    return bijection.x_shape if direction == "forward" else bijection.y_shape


def end_shape(bijection, direction):
    return bijection.y_shape if direction == "forward" else bijection.x_shape


def inside(bijection, direction, event):
    """A real event brought into the support of the side that a direction starts from."""
    low, high = bijection.x_support if direction == "forward" else bijection.y_support
    if np.isfinite(low) and np.isfinite(high):
        return low + (high - low) / (1 + np.exp(-event))
    return low + np.abs(event) if np.isfinite(low) else event


@pytest.mark.parametrize("scale", [None, 1.0, 3.0])
@pytest.mark.parametrize("name", BIJECTIONS | ENDS)
def test_each_direction_undoes_the_other(name, scale, rng):
    bijection = (BIJECTIONS | ENDS)[name]
    params = fp.initialize(bijection, NumpyDraws(rng)) if scale is None else draw(bijection, rng, scale)
    context = context_for(bijection, rng, (20,))
    for there, back, shape in (("forward", "inverse", bijection.x_shape), ("inverse", "forward", bijection.y_shape)):
        start = inside(bijection, there, 2 * rng.normal(size=(20, *shape)))
        end, log_det = call(there, bijection, params, start, context)
        again, log_det_back = call(back, bijection, params, end, context)
        # The residual on the far side is what a solver controls; a steep map amplifies it on the near side.
        residual = call(there, bijection, params, again, context)[0] - end
        tolerance = TOLERANCE[getattr(bijection, f"{back}_cost")]
        assert np.abs(residual).max() <= tolerance * (1 + np.abs(end).max())
        if scale != 3.0:
            np.testing.assert_allclose(again, start, rtol=1e-7, atol=1e-7)
            np.testing.assert_allclose(log_det_back, -log_det, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "namespace"),
    # The others in jax: see test_maps_over_events_and_weights, and test_flows_agree.
    [*((name, library) for name in ALL for library in ("strict", "torch")), *spread(ENDS, "jax")],
)
def test_all_libraries_give_the_same_numbers(name, namespace, rng):
    bijection = ALL[name]
    params = draw(bijection, rng, 1.0 if name in BIJECTIONS else 0.3)  # deep stacks amplify the rounding of each layer
    context = context_for(bijection, rng, (4,))
    for direction in ("forward", "inverse"):
        event = inside(bijection, direction, rng.normal(size=(4, *start_shape(bijection, direction))))
        expected = call(direction, bijection, params, event, context)
        with jax.numpy_dtype_promotion("strict"):
            found = call(direction, bijection, params, event, context, namespace)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "namespace"),
    [*((name, "torch") for name in BIJECTIONS | ENDS), *in_jax(BIJECTIONS | ENDS)],
)
def test_log_det_is_that_of_the_autodiff_jacobian(name, namespace, rng):
    bijection = (BIJECTIONS | ENDS)[name]
    for direction in ("forward", "inverse"):
        function = getattr(bijection, direction)
        if namespace == "torch":
            jacobian = torch.func.jacfwd(function, argnums=1, has_aux=True)
        else:
            take = jax.jacrev if name == "chain-reversible" else jax.jacfwd  # which has derivatives backwards only
            jacobian = jax.jit(take(function, argnums=1, has_aux=True))
        for scale in (1.0, 3.0):
            params = merged(bijection, draw(bijection, rng, scale), namespace)
            event = inside(bijection, direction, rng.normal(size=start_shape(bijection, direction)))
            matrix, found = jacobian(params, to(namespace, event), to(namespace, context_for(bijection, rng)))
            matrix = numpy(matrix).reshape(event.size, event.size)
            rounding = 1e-14 * np.linalg.cond(matrix)  # of the oracle
            np.testing.assert_allclose(numpy(found), np.linalg.slogdet(matrix)[1], rtol=1e-9, atol=1e-9 + rounding)


def first_and_second_derivative(namespace, function, at):
    if namespace == "torch":
        return torch.func.grad(function)(at), torch.func.hessian(function)(at)
    return jax.jit(jax.grad(function))(at), jax.jit(jax.hessian(function))(at)


DIFFERENTIATED = [
    "planar-stack",
    "planar-conditional",
    "sylvester-orthogonal-conditional",
    "radial",
    "elementwise-mixture",
    "coupling-spline",
    "autoregressive-inverted",
    "autoregressive-narrow",
    "block-autoregressive-context",
    "contractive-residual-context",
    "triangular-affine",
]


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize(
    ("name", "namespace"), [*((name, "torch") for name in DIFFERENTIATED), *in_jax(DIFFERENTIATED)]
)
def test_derivatives_of_both_directions_are_exact(name, direction, namespace, rng):
    """Gradient and Hessian, in event, weights and context, against central differences of the fourth order."""
    bijection = BIJECTIONS[name]
    params = draw(bijection, rng)
    context = context_for(bijection, rng)
    weights = rng.normal(size=bijection.x_shape)
    event = rng.normal(size=bijection.x_shape)
    path, leaf = max(_tree.leaves(params), key=lambda item: item[1].size)
    pieces = [event, leaf.ravel()[:4], *([context] if context is not None else [])]
    point = np.concatenate([piece.ravel() for piece in pieces])

    def scalar(library):
        base = merged(bijection, params, library)

        def function(vector):
            n, m = event.size, len(pieces[1])
            tree = copy.copy(base)
            node = tree
            for key in path[:-1]:
                node[key] = dict(node[key])
                node = node[key]
            flat = node[path[-1]].reshape(-1)
            concat = {"torch": torch.cat, "jax": jax.numpy.concatenate, "numpy": np.concatenate}[library]
            node[path[-1]] = concat([vector[n : n + m], flat[m:]]).reshape(leaf.shape)
            given = vector[n + m :] if context is not None else None
            result, log_det = getattr(bijection, direction)(tree, vector[:n], given)
            return (result * to(library, weights)).sum() + log_det

        return function

    gradient, hessian = first_and_second_derivative(namespace, scalar(namespace), to(namespace, point))
    reference = scalar("numpy")
    step = 1e-4
    for i in range(point.size):
        shift = np.zeros_like(point)
        shift[i] = step
        two_behind, behind, here, ahead, two_ahead = (reference(point + k * shift) for k in range(-2, 3))
        slope = (8 * (ahead - behind) - (two_ahead - two_behind)) / (12 * step)
        np.testing.assert_allclose(numpy(gradient)[i], slope, rtol=1e-5, atol=1e-6)
        curvature = (16 * (ahead + behind) - (two_ahead + two_behind) - 30 * here) / (12 * step**2)
        np.testing.assert_allclose(numpy(hessian)[i, i], curvature, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in BIJECTIONS | ENDS | RECIPES if ALL[name].parameters()])
def test_every_weight_gets_a_gradient(name, rng):
    """Away from the start, for both directions; masked entries get none."""
    bijection = ALL[name]
    declared = bijection.parameters()
    constants = bijection.constants()
    for direction in ("forward", "inverse"):
        params = _tree.map_tree(lambda a: torch.tensor(a, requires_grad=True), draw(bijection, rng))
        tree = _tree.merge(params, _tree.map_tree(torch.as_tensor, constants))
        context = to("torch", context_for(bijection, rng, (50,)))
        start = inside(bijection, direction, rng.normal(size=(50, *start_shape(bijection, direction))))
        event, log_det = getattr(bijection, direction)(tree, to("torch", start), context)
        ((event**3).sum() + (log_det**2).sum()).backward()
        masks = dict(_tree.leaves(constants))
        for path, _ in _tree.leaves(declared):
            node = params
            for key in path:
                node = node[key]
            mask = masks.get((*path[:-1], "mask")) if path[-1] == "weight" else None
            used = np.zeros(node.shape, bool) if node.grad is None else numpy(node.grad) != 0
            if mask is not None:
                assert not used[..., ~mask].any()
                used = used[..., mask]
            assert used.size == 0 or used.mean() > 0.9, (direction, path)


@pytest.mark.parametrize("name", BIJECTIONS)
def test_starts_at_the_identity(name, rng):
    bijection = BIJECTIONS[name]
    params = fp.initialize(bijection, NumpyDraws(rng))
    x = rng.normal(size=(3, *bijection.x_shape))
    y, log_det = call("forward", bijection, params, x, context_for(bijection, rng, (3,)))
    np.testing.assert_allclose(np.sort(y.reshape(3, -1)), np.sort(x.reshape(3, -1)), atol=1e-12)
    np.testing.assert_allclose(log_det, 0, atol=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 50])
@pytest.mark.parametrize("name", RECIPES)
def test_recipes_start_at_the_identity_in_any_dimension(name, dim, rng):
    for options in ({}, {"num_flows": 1}, {"num_flows": 5}, {"num_flows": 2, "context_dim": 3}):
        flow = fp.make_flow(name, dim, **options)
        params = fp.initialize(flow, NumpyDraws(rng))
        x = rng.normal(size=(3, dim))
        y, log_det = call("forward", flow, params, x, context_for(flow, rng))
        if name == "householder":  # an odd number of reflections cannot be the identity
            np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), atol=1e-12)
        else:
            np.testing.assert_allclose(y, x, atol=1e-12)
        np.testing.assert_allclose(log_det, 0, atol=1e-12)
        assert fp.num_parameters(flow) == sum(leaf.size for _, leaf in _tree.leaves(params))


BATCHES = [(3,), (2, 1, 3), ()]


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *((name, ("numpy", (2, 3))) for name in BIJECTIONS),
        *spread(BIJECTIONS, *itertools.product(("torch", "strict"), BATCHES)),
        *in_jax(BIJECTIONS, *itertools.product(["jax"], BATCHES)),
    ],
)
def test_batch_axes_are_independent(name, case, rng):
    bijection, (namespace, batch) = BIJECTIONS[name], case
    params, context = draw(bijection, rng), context_for(bijection, rng, batch)
    for direction in ("forward", "inverse"):
        event = rng.normal(size=(*batch, *start_shape(bijection, direction)))
        found, log_det = call(direction, bijection, params, event, context, namespace)
        assert found.shape == (*batch, *end_shape(bijection, direction))
        assert log_det.shape == batch
        for index in np.ndindex(*batch):
            one = call(direction, bijection, params, event[index], None if context is None else context[index])
            np.testing.assert_allclose(found[index], one[0], rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(log_det[index], one[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name, b in (BIJECTIONS | ENDS).items() if b.constants()])
def test_missing_constants_are_told_or_not_needed(name, rng):
    """A masked network without its masks would see all coordinates, and give wrong densities."""
    bijection = (BIJECTIONS | ENDS)[name]
    weights, context = draw(bijection, rng), context_for(bijection, rng, ())
    for direction in ("forward", "inverse"):
        event = rng.uniform(0.2, 0.8, size=start_shape(bijection, direction))
        try:
            found = getattr(bijection, direction)(weights, event, context)
        except ValueError as error:
            assert "lacks the constants" in str(error)  # noqa: PT017
        else:
            for one, expected in zip(found, call(direction, bijection, weights, event, context), strict=True):
                np.testing.assert_allclose(one, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "case"), spread(BIJECTIONS | ENDS, *itertools.product(("numpy", "torch"), [(0,), (2, 0)]))
)
def test_no_events_give_none(name, case, rng):
    bijection, (namespace, batch) = (BIJECTIONS | ENDS)[name], case
    params, context = draw(bijection, rng), context_for(bijection, rng, batch)
    for direction in ("forward", "inverse"):
        event = np.zeros((*batch, *start_shape(bijection, direction)))
        found, log_det = call(direction, bijection, params, event, context, namespace)
        assert found.shape == (*batch, *end_shape(bijection, direction))
        assert log_det.shape == batch


@pytest.mark.parametrize(
    ("name", "namespace"), spread([n for n, b in BIJECTIONS.items() if b.context_dim], "torch", "numpy", "jax")
)
def test_context_broadcasts_against_events(name, namespace, rng):
    bijection = BIJECTIONS[name]
    params = draw(bijection, rng)
    context = rng.normal(size=(4, bijection.context_dim))
    for event in (rng.normal(size=bijection.x_shape), rng.normal(size=(3, 1, *bijection.x_shape))):
        for direction in ("forward", "inverse"):
            found, log_det = call(direction, bijection, params, event, context, namespace)
            batch = np.broadcast_shapes(event.shape[: event.ndim - len(bijection.x_shape)], (4,))
            assert found.shape == (*batch, *bijection.y_shape)
            assert log_det.shape == batch
            wide = np.broadcast_to(event, (*batch, *bijection.x_shape))
            expected = call(direction, bijection, params, wide, np.broadcast_to(context, (*batch, context.shape[-1])))
            np.testing.assert_allclose(found, expected[0], rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(log_det, expected[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "namespace"),
    [*((name, library) for name in BIJECTIONS for library in ("torch", "numpy")), *in_jax(BIJECTIONS)],
)
def test_weights_may_carry_batch_axes(name, namespace, rng):
    """One set of weights per event gives, event by event, what each set gives alone."""
    bijection = BIJECTIONS[name]
    params = draw(bijection, rng, batch=(4,))
    context = context_for(bijection, rng, (4,))
    for direction in ("forward", "inverse"):
        event = rng.normal(size=(4, *start_shape(bijection, direction)))
        found, log_det = call(direction, bijection, params, event, context, namespace)
        assert log_det.shape == (4,)
        for i in range(4):
            single = _tree.map_tree(lambda leaf, i=i: leaf[i], params)
            one = call(direction, bijection, single, event[i], None if context is None else context[i])
            np.testing.assert_allclose(found[i], one[0], rtol=1e-8, atol=1e-8)
            np.testing.assert_allclose(log_det[i], one[1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "kind",
    [
        lambda dim: fp.Planar(dim, num_flows=2),
        fp.Radial,
        fp.ElementwiseAffine,
        fp.TriangularAffine,
        fp.LU,
        fp.QR,
        fp.MatrixExponential,
        lambda dim: fp.LowRankAffine(dim, 2),
        lambda dim: fp.OrthogonalSylvester(dim, 2),
        lambda dim: fp.HouseholderSylvester(dim, 2, 2),
        fp.TriangularSylvester,
    ],
)
def test_a_single_weight_may_carry_batch_axes(kind, rng):
    bijection = kind(3)
    params, x = draw(bijection, rng), rng.normal(size=3)
    for name, leaf in params.items():
        batched = params | {name: np.stack([leaf] * 4)}
        for direction in ("forward", "inverse"):
            found, log_det = call(direction, bijection, batched, x)
            assert (found.shape, log_det.shape) == ((4, 3), (4,))
            alone, log_det_alone = call(direction, bijection, params, x)
            np.testing.assert_allclose(found, np.stack([alone] * 4), rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(log_det, np.stack([log_det_alone] * 4), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["planar-stack", "sylvester-triangular", "coupling-mixed", "autoregressive", "repeat"])
def test_torch_func_maps_over_events_and_weights(name, rng):
    bijection = BIJECTIONS[name]
    context = to("torch", context_for(bijection, rng, (4,)))
    params = _tree.map_tree(torch.tensor, draw(bijection, rng, batch=(4,)))
    constants = _tree.map_tree(torch.as_tensor, bijection.constants())
    event = to("torch", rng.normal(size=(4, *bijection.x_shape)))
    for direction in ("forward", "inverse"):

        def one(params, event, context, direction=direction):
            return getattr(bijection, direction)(_tree.merge(params, constants), event, context)

        mapped = torch.func.vmap(one, in_dims=(0, 0, None if context is None else 0))(params, event, context)
        batched = getattr(bijection, direction)(_tree.merge(params, constants), event, context)
        for a, b in zip(mapped, batched, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_no_weight_makes_an_affine_scale_degenerate():
    for kind in (fp.ElementwiseAffine, fp.TriangularAffine):
        params = {name: np.full(p.shape, -500.0, np.float32) for name, p in kind(2).parameters().items()}
        for direction in ("forward", "inverse"):
            for array in call(direction, kind(2), params, np.ones(2, np.float32)):
                assert np.isfinite(array).all()


@pytest.mark.parametrize(("name", "namespace"), [*((name, "torch") for name in BIJECTIONS), *in_jax(BIJECTIONS)])
def test_far_events_give_finite_values_and_gradients(name, namespace, rng):
    bijection = BIJECTIONS[name]
    tree = merged(bijection, draw(bijection, rng), namespace)
    context = to(namespace, context_for(bijection, rng))
    for direction in ("forward", "inverse"):
        shape, function = start_shape(bijection, direction), getattr(bijection, direction)
        far = to(namespace, 1e4 * np.where(rng.uniform(size=(8, *shape)) < 0.5, -1.0, 1.0))

        def total(event, function=function):
            image, log_det = function(tree, event, context)
            return image.sum() + log_det.sum(), (image, log_det)

        if namespace == "torch":
            gradient, images = torch.func.grad(total, has_aux=True)(far)
        else:
            gradient, images = jax.jit(jax.grad(total, has_aux=True))(far)
        for array in (gradient, *images):
            assert np.isfinite(numpy(array)).all()


def total_and_gradients(bijection, namespace, tree, event, context, direction):
    """What one direction gives, and the gradients of its sum: with respect to the event, and to all weights."""
    own = _tree.select(bijection.parameters(), tree)

    def total(own, event):
        image, log_det = getattr(bijection, direction)(_tree.replace(tree, own), event, context)
        return image.sum() + log_det.sum(), (image, log_det)

    if namespace == "torch":
        gradients, images = torch.func.grad(total, argnums=(0, 1), has_aux=True)(own, event)
    else:
        gradients, images = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(own, event)
    return [numpy(array) for array in (*images, gradients[1], *(leaf for _, leaf in _tree.leaves(gradients[0])))]


def single(tree):
    return _tree.map_tree(lambda a: a.astype(np.float32) if a.dtype.kind == "f" else a, tree)


@pytest.mark.parametrize(
    ("name", "namespace"), [*((name, "torch") for name in BIJECTIONS), ("radial", "jax"), ("coupling-spline", "jax")]
)
def test_events_of_1e30_are_safe_in_single_precision(name, namespace, rng):
    bijection = BIJECTIONS[name]
    tree = _tree.map_tree(lambda leaf: to(namespace, leaf), single(merged(bijection, draw(bijection, rng))))
    context = context_for(bijection, rng)
    context = None if context is None else to(namespace, context.astype(np.float32))
    for direction in ("forward", "inverse"):
        far = 1e30 * rng.normal(size=(8, *start_shape(bijection, direction))).astype(np.float32)
        for array in total_and_gradients(bijection, namespace, tree, to(namespace, far), context, direction):
            assert np.isfinite(array).all()


# Solving with a triangle of entries of 1e30 is left out: what it gives is no number in float32.
HUGE = {
    "radial": ("center", "alpha", "beta"),
    "planar": ("w", "u", "b"),
    "elementwise-spline": ("raw",),
    "elementwise-scale": ("raw",),
    "elementwise-mixture": ("raw",),
    "elementwise-circular": ("raw",),
    "elementwise-gaussianization": ("raw",),
    "elementwise-bernstein": ("raw",),
    "elementwise-squares": ("raw",),
    "elementwise-cubic-spline": ("raw",),
    "act-norm": ("loc", "scale"),
    "triangular-affine": ("loc", "scale"),
    "lu": ("scale",),
    "matrix-exponential": ("weight",),
    "low-rank-affine": ("loc", "scale", "directions"),
}


@pytest.mark.parametrize(("name", "namespace"), [*((n, "torch") for n in HUGE), ("radial", "jax"), ("lu", "jax")])
def test_weights_of_1e30_are_safe(name, namespace, rng):
    more = {"circular": fp.CircularSpline(4), "scale": fp.Scale()}
    bijection = BIJECTIONS[name] if name in BIJECTIONS else fp.Elementwise(5, more[name.partition("-")[2]])
    for key in HUGE[name]:
        for dtype, size in (("float32", 1e30), ("float32", -1e30), ("float64", 1e30), ("float64", -1e30)):
            params = draw(bijection, rng)
            params[key] = size * (1.0 + rng.uniform(size=np.shape(params[key])))
            tree = _tree.merge(params, bijection.constants())
            tree = _tree.map_tree(lambda leaf, t=dtype: leaf.astype(t) if leaf.dtype.kind == "f" else leaf, tree)
            tree = _tree.map_tree(lambda leaf: to(namespace, leaf), tree)
            event = to(namespace, rng.uniform(-1.0, 1.0, size=(8, *bijection.x_shape)).astype(dtype))
            for direction in ("forward", "inverse"):
                for array in total_and_gradients(bijection, namespace, tree, event, None, direction):
                    assert not np.isnan(array).any(), (key, dtype, size, direction)


@pytest.mark.parametrize("unit", [1e-30, 1e-11, 1.0, 1e30])
def test_affine_layers_fit_data_of_any_size(unit, rng):
    data = unit * (rng.normal(size=(50, 2)) + np.array([0.0, 3.0]))
    loc, scale = data.mean(axis=0), data.std(axis=0)
    for layer in (fp.ElementwiseAffine(2), fp.ActNorm(2)):
        found = layer.loc_and_scale(layer.parameters_for(loc, scale))
        np.testing.assert_allclose(found, [loc, scale], rtol=1e-12)
    matrix = unit * np.array([[1.0, 0.0], [-2.0, 0.5]])
    triangular = fp.TriangularAffine(2)
    found = triangular.loc_and_scale(triangular.parameters_for(loc, matrix) | triangular.constants())
    np.testing.assert_allclose(found[1], matrix, rtol=1e-12)
    start = {"loc": np.zeros(2), "scale": np.zeros(2)}
    x, log_det = fp.ActNorm(2).inverse(fp.ActNorm(2).init_from(start, data), data)
    np.testing.assert_allclose([x.mean(axis=0), x.std(axis=0)], [[0, 0], [1, 1]], atol=1e-12)
    np.testing.assert_allclose(log_det, -np.log(scale).sum(), rtol=1e-12)
    small = (data / unit * 1e-30).astype(np.float32)
    params = fp.ActNorm(2).init_from(_tree.map_tree(np.float32, start), small)
    assert all(np.isfinite(leaf).all() for leaf in params.values())


def test_a_coordinate_that_does_not_vary_keeps_its_scale():
    data = np.stack([np.full(50, 0.1 + 0.2), np.linspace(0.0, 1.0, 50)], axis=1)
    params = fp.ActNorm(2).init_from({"loc": np.zeros(2), "scale": np.zeros(2)}, data)
    np.testing.assert_allclose(params["scale"][0], 0, atol=1e-12)
    np.testing.assert_allclose(params["loc"], data.mean(axis=0))


@pytest.mark.parametrize(
    ("name", "namespace"),
    [*((name, "numpy") for name in BIJECTIONS), *spread(BIJECTIONS, "torch", "strict"), *in_jax(BIJECTIONS)],
)
def test_single_precision_stays_single(name, namespace, rng):
    bijection = BIJECTIONS[name]
    params = _tree.map_tree(lambda a: a.astype(np.float32), draw(bijection, rng, 0.5))
    context = context_for(bijection, rng, (5,))
    context = None if context is None else context.astype(np.float32)
    event = rng.normal(size=(5, *bijection.x_shape)).astype(np.float32)
    with jax.numpy_dtype_promotion("strict"):
        y, log_det = call("forward", bijection, params, event, context, namespace)
        x, log_det_back = call("inverse", bijection, params, y, context, namespace)
    assert {a.dtype for a in (y, log_det, x, log_det_back)} == {np.dtype(np.float32)}
    again, _ = call("forward", bijection, params, x, context, namespace)
    assert np.abs(again - y).max() <= 1e-4 * (1 + np.abs(y).max())


@pytest.mark.parametrize("name", BIJECTIONS)
def test_single_precision_stays_single_in_jax(name):
    """Traced, without a compilation."""
    bijection = BIJECTIONS[name]

    def arrays(*shape):
        return jax.ShapeDtypeStruct(shape, np.float32)

    params = _tree.map_tree(lambda parameter: arrays(*parameter.shape), bijection.parameters())
    context = arrays(5, bijection.context_dim) if bijection.context_dim else None
    constants = bijection.constants()
    for direction in ("forward", "inverse"):
        function, event = getattr(bijection, direction), arrays(5, *start_shape(bijection, direction))
        with jax.numpy_dtype_promotion("strict"):
            found = jax.eval_shape(
                lambda p, e, c, f=function: f(_tree.merge(p, constants), e, c), params, event, context
            )
        assert {array.dtype for array in found} == {np.dtype(np.float32)}
        assert [array.shape for array in found] == [(5, *end_shape(bijection, direction)), (5,)]


@pytest.mark.parametrize(
    "name",
    [
        "planar-1d",
        "radial-1d",
        "coupling-1d",
        "autoregressive-1d",
        "planar-conditional-mlp",
        "sylvester-triangular-conditional",
        "coupling-linear-net",
    ],
)
def test_density_integrates_to_one(name, rng):
    bijection = BIJECTIONS[name]
    params, context = draw(bijection, rng, 0.7), context_for(bijection, rng)
    (dim,) = bijection.x_shape
    axis = np.linspace(-40, 40, 20001 if dim == 1 else 1601)
    grid = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), -1)
    for direction in ("forward", "inverse"):
        base, log_det = call(direction, bijection, params, grid, context)
        density = np.exp(log_det - 0.5 * (base**2).sum(-1) - 0.5 * dim * np.log(2 * np.pi))
        assert abs(density.sum() * (axis[1] - axis[0]) ** dim - 1) < 1e-3


@pytest.mark.parametrize("name", ALL)
def test_bijections_are_values(name):
    """Equal, hashable, copied and pickled as plain data, and printed as the call that makes them."""
    bijection = ALL[name]
    for other in (
        copy.deepcopy(bijection),
        pickle.loads(pickle.dumps(bijection)),
        eval(repr(bijection), vars(fp).copy()),
    ):
        assert other == bijection
        assert hash(other) == hash(bijection)


@pytest.mark.parametrize("name", ALL)
def test_trees_keep_to_their_rules(name):
    bijection = ALL[name]
    parameters, constants = (dict(_tree.leaves(t)) for t in (bijection.parameters(), bijection.constants()))
    assert not parameters.keys() & constants.keys()
    assert all("." not in key for path in [*parameters, *constants] for key in path)
    assert all(array.dtype.kind in "bi" for array in constants.values())


@pytest.mark.parametrize("name", BIJECTIONS)
def test_maps_over_events_and_weights(name, rng):
    """In jax vmap over all arguments at once gives what NumPy gives of a batch."""
    bijection = BIJECTIONS[name]
    params = draw(bijection, rng, batch=(3,))
    context = context_for(bijection, rng, (3,))
    constants = bijection.constants()
    for direction in ("forward", "inverse"):
        event = rng.normal(size=(3, *start_shape(bijection, direction)))
        expected = call(direction, bijection, params, event, context)
        function = getattr(bijection, direction)
        mapped = jax.jit(jax.vmap(lambda p, e, c, f=function: f(_tree.merge(p, constants), e, c)))
        with jax.numpy_dtype_promotion("strict"):
            found = mapped(params, event, context)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


COMPILED = ["planar-conditional", "coupling-mixed", "autoregressive-narrow", "triangular-affine", "repeat"]
COMPILED += ["elementwise-linear-spline"]


@pytest.mark.parametrize("name", COMPILED)
def test_torch_compiles_to_one_graph(name, rng):
    bijection = BIJECTIONS[name]
    params = draw(bijection, rng)
    context = context_for(bijection, rng, (3,))
    event = rng.normal(size=(3, *bijection.x_shape))
    tree = merged(bijection, params, "torch")
    torch._dynamo.reset()
    for direction in ("forward", "inverse"):
        compiled = torch.compile(getattr(bijection, direction), backend="aot_eager", fullgraph=True)
        found = compiled(tree, to("torch", event), to("torch", context))
        for a, b in zip(found, call(direction, bijection, params, event, context), strict=True):
            np.testing.assert_allclose(numpy(a), b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", BIJECTIONS | ENDS)
def test_scores_are_pushed_as_the_jacobian_says(name, rng):
    bijection = (BIJECTIONS | ENDS)[name]
    params, x = draw(bijection, rng), rng.normal(size=(4, *bijection.x_shape))
    context, score = context_for(bijection, rng, (4,)), rng.normal(size=x.shape)
    weights = merged(bijection, params, "torch")
    results = [bijection.push_score(weights, *(to("torch", a) for a in (x, score, context)))]
    # Of the others there is the version that all bijections have.
    own = {type(part) for part in _parts(bijection) if "push_score" in vars(type(part))}
    if own - {fp.Chain, fp.Repeat, fp.Conditional} or name == "planar-stack":
        jitted = jax.jit(bijection.push_score)
        results.append(jitted(merged(bijection, params, "jax"), *(to("jax", a) for a in (x, score, context))))
    jacobian = torch.func.jacrev(bijection.forward, argnums=1)
    for i in range(4):
        matrix, slope = jacobian(weights, to("torch", x[i]), to("torch", None if context is None else context[i]))
        matrix = numpy(matrix).reshape(score[i].size, score[i].size)
        expected = np.linalg.solve(matrix.T, (score[i] - numpy(slope)).ravel())
        rounding = 1e-14 * np.linalg.cond(matrix) * np.abs(expected).max()  # of the oracle
        for *_, found in results:
            np.testing.assert_allclose(numpy(found)[i].ravel(), expected, rtol=1e-9, atol=1e-9 + rounding)
    plain = call("forward", bijection, params, x, context)
    for result in results:
        for one, other in zip(result, plain, strict=False):
            np.testing.assert_allclose(numpy(one), other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("namespace", AUTODIFF)
@pytest.mark.parametrize("name", ["coupling-mixed", "damped-repeat", "subspace", "elementwise-spline", "planar"])
def test_a_score_is_a_constant_and_the_rest_has_the_derivatives_of_forward(name, namespace, rng):
    bijection = BIJECTIONS[name]
    x = to(namespace, rng.normal(size=(3, *bijection.x_shape)))
    context = to(namespace, context_for(bijection, rng, (3,)))
    params, constants = draw(bijection, rng), merged(bijection, {}, namespace)

    def loss(params, x, pushed):
        tree = _tree.merge(params, constants)
        run = partial(bijection.push_score, tree, x, -x) if pushed else partial(bijection.forward, tree, x)
        y, log_det, *score = run(context)
        return (y**2).sum() + (y[..., 0] * log_det).sum() + sum(part.sum() for part in score)

    if namespace == "jax":
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
        found, expected = (gradient(_tree.map_tree(jnp.asarray, params), x, pushed) for pushed in (True, False))
    else:
        weights = _tree.map_tree(lambda leaf: torch.tensor(leaf, requires_grad=True), params)
        leaves = [x.requires_grad_(), *(leaf for _, leaf in _tree.leaves(weights))]
        found, expected = (torch.autograd.grad(loss(weights, x, pushed), leaves) for pushed in (True, False))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(numpy(one), numpy(other), rtol=1e-10, atol=1e-10)


def test_scores_have_the_batch_of_what_comes_out(rng):
    """One event, and contexts or weights for several."""
    for name in ("coupling-mixed", "triangular-affine-conditional", "planar-conditional", "subspace-conditional"):
        bijection = BIJECTIONS[name]
        params = merged(bijection, draw(bijection, rng), "torch")
        x, score = (torch.tensor(rng.normal(size=bijection.x_shape)) for _ in range(2))
        context = torch.tensor(rng.normal(size=(3, bijection.context_dim)))
        found = bijection.push_score(params, x, score, context)
        for i, given in enumerate(context):
            for one, other in zip(found, bijection.push_score(params, x, score, given), strict=True):
                np.testing.assert_allclose(numpy(one[i]), numpy(other), rtol=1e-10, atol=1e-12)
