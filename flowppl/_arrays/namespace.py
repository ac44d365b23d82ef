"""One array namespace for NumPy, PyTorch, JAX and any other Array API library.

``xp = namespace(x)`` gives the functions of the Python Array API standard (2023.12) for the library
that ``x`` belongs to, and beside them the few that the standard lacks and flows need. This is the
only file of the core that names a framework, and it imports one only when an array of it arrives.

What is added to the standard:

=====================================  ==================================================================
``softplus sigmoid silu elu relu``     activations, stable in both tails and exact in float64
``linear(x, weight, bias)``            ``x @ weight + bias``; ``weight`` may carry batch dimensions
``matmul_add(x, weight, added)``       ``weight @ x + added``, the same with events as columns
``conv2d(x, weight, bias, ...)``       a convolution of images ``(..., C, H, W)``, as networks have it: see below
``conv1d(x, weight, bias, ...)``       the same, of sequences ``(..., C, L)``
``softmax(x)``, ``log_softmax(x)``     over the first axis, the former over another ``axis`` where that is given
``logsumexp(x)``                       over the first axis
``log_ndtr(x)``                        log of the standard normal distribution function, exact in both tails
``broadcast_shapes(*shapes)``          as NumPy has it
``pick(table, index)``                 ``table[index]``, entry by entry, in the first axis of ``table``
``split(x, sizes, axis=0)``            ``x`` cut into parts of these sizes along an axis
``reordered(x, order, pattern)``       ``x[..., order]`` for a permutation that is "reverse", or (a, b), the columns of
                                       a grid of a rows, one after the other, or ``None``, any other
``solve_unit_triangular(matrix, x)``   the z with ``(I + strict lower part of matrix) @ z = x``; or ``upper=True``
``cholesky(matrix)``                   the lower triangle L with ``L @ L.mT`` the positive definite matrix
``orthonormal(matrix)``                orthonormal columns that span those of the matrix, of as many
``inv(matrix)``                        the inverse of a matrix I + A, for an A of a spectral norm below 1
``log_abs_det(matrix)``                the logarithm of the absolute determinant of such a one
``stop_gradient(x)``                   ``x``, held constant by automatic differentiation
``vjp(function, *primals)``            its values, a tuple, and a function of their cotangents to those of the primals,
                                       which are constants; torch and JAX only
``pullback(function, *trees)``         its values, a tuple of trees, and a function of their cotangents to those of all
                                       floats in ``trees``; both have derivatives themselves; torch and JAX only
``jacobian(function, x)``              derivatives of events in events, that of entry i in entry j at ``[..., i, j]``;
                                       torch and JAX only
``reversible(run, pull, *trees)``      ``run(params, event, context)``, a pair, of which only the first is kept for
                                       derivatives: those are ``pull(params, image, context, cotangents)``
``vmap(function, *trees)``             ``function`` of each part along the first axis of all leaves, stacked
``fori_loop(n, body, carry)``          ``carry = body(i, carry)`` for i = 0 .. n-1; ``n`` is static
``scan(body, carry, layers, n, ...)``  ``carry = body(carry, layer)`` over a leading axis, or from its end
``collect(n, body, carry, *items)``     ``carry, outs = body(i, carry, *item)``; the last carry and each out, stacked;
                                       or from the end, ``reverse=True``
``segment(x, bounds, i, axis)``        ``x`` from ``bounds[i]`` to ``bounds[i + 1]``; JAX adds zeros up to the longest
=====================================  ==================================================================

``conv2d(x, weight, bias, padding=((0, 0), (0, 0)), dilation=(1, 1))`` gives ``(..., O, H', W')``, each entry
``bias[o]`` plus the sum over c, i, j of ``weight[o, c, i, j] * x[..., c, h + i * dilation[0], w + j * dilation[1]]``,
once there are zeros around ``x``: ``padding`` says how many rows above and below, and columns left and right. The
shapes are ``(..., C, H, W)`` of ``x``, ``(..., O, C, kH, kW)`` of ``weight`` and ``(..., O)`` of ``bias``; leading axes
of all three broadcast. ``conv1d`` takes ``padding=(0, 0)`` and ``dilation=1``.
"""

import functools
import math
import sys
import types
from typing import Any

import numpy as np

from flowppl._arrays.tree import leaves, map_tree

Array = Any  # an array of whichever library the caller uses


# Built once per library: {"torch": its namespace, ...}.
_namespaces: dict[str, Any] = {}


def namespace(x: Array) -> Any:
    """The array functions for the library of ``x``: the standard's, and those listed above.

    Raises:
        TypeError: if ``x`` is not an array (a list or a Python number, for example).
    """
    # An array of a library exists only where the library was imported, so nothing is imported to look.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return _namespaces["torch"] if "torch" in _namespaces else build("torch")
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(x, jax.Array):
        return _namespaces["jax"] if "jax" in _namespaces else build("jax")
    if isinstance(x, (np.ndarray, np.generic)):
        return _namespaces["numpy"] if "numpy" in _namespaces else build("numpy")
    if hasattr(x, "__array_namespace__"):
        return _standard_namespace(x.__array_namespace__())
    raise TypeError(
        f"expected an array of NumPy, PyTorch, JAX or another Array API library, got {type(x).__name__}; "
        "convert it first, for example with torch.as_tensor or jax.numpy.asarray"
    )


def build(library: str) -> Any:
    """Prepare the namespace of "numpy", "torch" or "jax"; ``torch.compile`` must find it ready."""
    builders = {"numpy": lambda: _standard_namespace(np), "torch": _torch_namespace, "jax": _jax_namespace}
    _namespaces[library] = builders[library]()
    return _namespaces[library]


def _extended(standard, **extras):
    """A copy of the module ``standard`` in which the names of ``extras`` are added or replaced."""
    module = types.ModuleType(f"flowppl_{standard.__name__}")
    vars(module).update(vars(standard))
    vars(module).update(extras)
    return module


def _shared(xp):
    """The additions that standard functions express well enough, whatever the library."""

    def linear(x, weight, bias):
        if weight.ndim == 2:  # shared weights: one plain matrix product
            return xp.matmul(x, weight) + bias
        return xp.matmul(x[..., None, :], weight)[..., 0, :] + bias

    def fori_loop(n, body, carry):
        for i in range(n):
            carry = body(i, carry)
        return carry

    def vmap(function, *trees):
        num = len(next(leaf for _, leaf in leaves(trees[0])))
        return xp.stack([function(*(map_tree(lambda leaf, i=i: leaf[i], tree) for tree in trees)) for i in range(num)])

    def conv2d(x, weight, bias, padding=((0, 0), (0, 0)), dilation=(1, 1)):
        for axis, sizes in zip((-2, -1), padding, strict=True):
            x = _with_zeros(xp, x, axis, sizes) if any(sizes) else x
        (down, right), kernel = dilation, weight.shape[-2:]
        height, width = (x.shape[i] - dilation[i] * (kernel[i] - 1) for i in (-2, -1))
        total = bias[..., None]
        for i, j in np.ndindex(*kernel):
            part = x[..., i * down : i * down + height, j * right : j * right + width]
            part = xp.reshape(part, (*part.shape[:-2], height * width))
            total = total + xp.matmul(weight[..., i, j], part)
        return xp.reshape(total, (*total.shape[:-1], height, width))

    def split(x, sizes, axis=0):
        ends, before = np.cumsum(sizes).tolist(), (slice(None),) * (axis % x.ndim)
        return [x[(*before, slice(end - size, end), ...)] for size, end in zip(sizes, ends, strict=True)]

    def scan(body, carry, layers, n, reverse=False):
        columns = map_tree(lambda leaf: xp.unstack(leaf, axis=0), layers)
        for i in reversed(range(n)) if reverse else range(n):
            carry = body(carry, map_tree(lambda column, i=i: column[i], columns))
        return carry

    def collect(n, body, carry, *items, reverse=False):
        columns, collected = [xp.unstack(item, axis=0) for item in items], []
        for i in reversed(range(n)) if reverse else range(n):
            carry, outs = body(i, carry, *(column[i] for column in columns))
            collected.append(outs)
        collected = collected[::-1] if reverse else collected
        return carry, tuple(xp.stack(column, axis=0) for column in zip(*collected, strict=True))

    def segment(x, bounds, i, axis):
        return x[(..., slice(bounds[i], bounds[i + 1]), *(slice(None),) * (-axis - 1))]

    return {
        "linear": linear,
        "broadcast_shapes": np.broadcast_shapes,
        "cholesky": _widened(xp, lambda matrix: xp.linalg.cholesky(matrix)),
        "orthonormal": _widened(xp, lambda matrix: xp.linalg.qr(matrix)[0]),
        "inv": _widened(xp, lambda matrix: xp.linalg.inv(matrix)),
        "log_abs_det": _widened(xp, lambda matrix: xp.linalg.slogdet(matrix)[1]),
        "reordered": lambda x, order, pattern: xp.take(x, order, axis=-1),
        "matmul_add": lambda x, weight, added: xp.matmul(weight, x) + added,
        "conv2d": conv2d,
        "conv1d": _conv1d(conv2d),
        "fori_loop": fori_loop,
        "vmap": vmap,
        "split": split,
        "scan": scan,
        "collect": collect,
        "segment": segment,
        "reversible": lambda run, pull, params, event, context: run(params, event, context),
    }


def _with_zeros(xp, x, axis, sizes):
    """``x`` with so many zeros before and behind it along an axis."""
    before, behind = (
        xp.zeros((*x.shape[:axis], n, *x.shape[axis:][1:]), dtype=x.dtype, device=x.device) for n in sizes
    )
    return xp.concat([before, x, behind], axis=axis)


def _conv1d(conv2d):
    """``conv1d`` through ``conv2d`` of images one pixel high."""

    def conv1d(x, weight, bias, padding=(0, 0), dilation=1):
        y = conv2d(x[..., None, :], weight[..., None, :], bias, ((0, 0), padding), (1, dilation))
        return y[..., 0, :]

    return conv1d


def _widened(xp, function):
    """``function`` of arrays of one dtype; LAPACK has no half precision, which is computed in single precision."""

    def call(*arrays, **options):
        dtype = xp.result_type(*arrays)
        wide = dtype if xp.finfo(dtype).bits >= 32 else xp.float32
        if all(array.dtype == wide for array in arrays):
            return function(*arrays, **options)
        return xp.astype(function(*(xp.astype(array, wide) for array in arrays), **options), dtype)

    return call


def _same_batch(xp, table, index):
    """Both arrays with the axes after the first broadcast against each other."""
    batch = np.broadcast_shapes(table.shape[1:], index.shape[1:])
    return tuple(xp.broadcast_to(a, (a.shape[0], *batch)) for a in (table, index))


def _log_ndtr(xp, erfc):
    """``log_ndtr`` by the complementary error function of a library, which has no digits far out.

    Those of torch and JAX themselves have wrong derivatives far out in single precision, or few digits.
    """

    def log_ndtr(x):
        is_far = x < -12.0
        far = xp.where(is_far, -x, xp.full_like(x, 12.0))
        fraction = far
        for k in range(6, 0, -1):  # Laplace's continued fraction of density / tail
            fraction = far + k / fraction
        tail = -far * far / 2 - xp.log(fraction) - math.log(2 * math.pi) / 2
        return xp.where(is_far, tail, xp.log(erfc(xp.where(is_far, xp.zeros_like(x), x) * -(0.5**0.5)) / 2))

    return log_ndtr


def _standard_namespace(xp):
    """NumPy and other libraries without derivatives: the reference, written for clarity."""

    def softplus(x):
        return xp.maximum(x, xp.zeros_like(x)) + xp.log1p(xp.exp(-xp.abs(x)))

    def sigmoid(x):
        return xp.exp(-softplus(-x))

    def softmax(x, axis=0):
        shares = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
        return shares / xp.sum(shares, axis=axis, keepdims=True)

    def logsumexp(x):
        largest = xp.max(x, axis=0)
        return largest + xp.log(xp.sum(xp.exp(x - largest), axis=0))

    def log_softmax(x):
        below = x - xp.max(x, axis=0)
        return below - xp.log(xp.sum(xp.exp(below), axis=0))

    def erfc(x):
        values = [math.erfc(float(entry)) for entry in xp.unstack(xp.reshape(x, (-1,)))]
        return xp.reshape(xp.asarray(values, dtype=x.dtype, device=x.device), x.shape)

    def solve_unit_triangular(matrix, x, upper=False):
        strict = xp.triu(matrix, k=1) if upper else xp.tril(matrix, k=-1)
        return xp.linalg.solve(strict + xp.eye(matrix.shape[-1], dtype=matrix.dtype), x[..., None])[..., 0]

    return _extended(
        xp,
        **_shared(xp),
        softplus=softplus,
        sigmoid=sigmoid,
        silu=lambda x: x * sigmoid(x),
        elu=lambda x: xp.where(x > 0, x, xp.expm1(xp.minimum(x, xp.zeros_like(x)))),
        relu=lambda x: xp.maximum(x, xp.zeros_like(x)),
        softmax=softmax,
        log_softmax=log_softmax,
        logsumexp=logsumexp,
        log_ndtr=_log_ndtr(xp, erfc),
        pick=lambda table, index: xp.take_along_axis(*_same_batch(xp, table, index[None, ...]), axis=0)[0, ...],
        solve_unit_triangular=_widened(xp, solve_unit_triangular),
        stop_gradient=lambda x: x,
    )


def _torch_namespace():
    import torch
    import torch.nn.functional as F
    from array_api_compat import torch as compat

    # Those of array-api-compat write in place, have no rule for torch.func.vmap, or make torch.compile warn.
    xp = _extended(
        compat,
        moveaxis=torch.movedim,
        sign=torch.sign,
        unstack=lambda x, axis=0: torch.unbind(x, dim=axis),
        cumulative_sum=lambda x, axis: torch.cumsum(x, dim=axis),
    )
    shared = _shared(xp)

    def linear(x, weight, bias):
        if weight.ndim == x.ndim == 2 and (bias.ndim == 1 or bias.shape[0] == x.shape[0]):
            return torch.addmm(bias, x, weight)  # product and sum in one kernel
        if weight.ndim == 2 and bias.ndim == 1:
            return F.linear(x, weight.mT, bias)
        return shared["linear"](x, weight, bias)

    def matmul_add(x, weight, added):
        if x.ndim == weight.ndim == added.ndim == 2:
            return torch.addmm(added, weight, x)
        return torch.matmul(weight, x) + added

    def conv2d(x, weight, bias, padding=((0, 0), (0, 0)), dilation=(1, 1)):
        (top, bottom), (left, right) = padding
        is_even = (top, left) == (bottom, right)
        if weight.ndim > 4 or not is_even:
            x = F.pad(x, (left, right, top, bottom))
        if weight.ndim > 4:
            return shared["conv2d"](x, weight, bias, dilation=dilation)
        images = x if x.ndim == 4 else x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:])
        within = bias if bias.ndim == 1 else None
        y = F.conv2d(images, weight, within, padding=(top, left) if is_even else 0, dilation=dilation)
        y = y if x.ndim == 4 else y.reshape(*x.shape[:-3], *y.shape[1:])
        return y if bias.ndim == 1 else y + bias[..., None, None]

    def pick(table, index):
        if table.shape[1:] == index.shape:
            return table.gather(0, index[None])[0]
        return torch.take_along_dim(table, index[None], dim=0)[0]

    def split(x, sizes, axis=0):
        return torch.split(x, sizes, dim=axis)  # its derivative is one concatenation

    def reordered(x, order, pattern):
        # The derivative of a flip is a flip, that of a gather a sum into zeros: 3 to 7% of a step of an autoregressive
        # flow. In XLA it is the other way round.
        return torch.flip(x, (-1,)) if pattern == "reverse" else torch.index_select(x, -1, order)

    def solve_unit_triangular(matrix, x, upper=False):
        solve = functools.partial(torch.linalg.solve_triangular, upper=upper, unitriangular=True)
        if matrix.ndim == 2:
            return solve(matrix, x.reshape(-1, x.shape[-1]).mT).mT.reshape(x.shape)
        return solve(matrix, x[..., None])[..., 0]

    def vmap(function, *trees):
        return torch.func.vmap(function)(*trees)

    def collect(n, body, carry, *items, reverse=False):
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            return shared["collect"](n, body, carry, *items, reverse=reverse)
        columns, collected = [torch.unbind(item) for item in items], {}

        def keep(name, i, out):
            if name not in collected:  # of large arrays a list would be a second copy
                is_large = out.numel() > 1024
                collected[name] = out.new_empty((n, *out.shape)) if is_large else [out] * n
            collected[name][i] = out

        for i in reversed(range(n)) if reverse else range(n):
            carry, outs = body(i, carry, *(column[i] for column in columns))
            for name, out in enumerate(outs):
                keep(name, i, out)
        return carry, tuple(torch.stack(c) if isinstance(c, list) else c for c in collected.values())

    def is_float(leaf):
        return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()

    def floats(trees):
        return [leaf for tree in trees for _, leaf in leaves(tree) if is_float(leaf)]

    def outline(trees):
        """``trees`` without their floats, in the place of which is a mark."""
        return [map_tree(lambda leaf: floats if is_float(leaf) else leaf, tree) for tree in trees]

    def filled(outline, values):
        values = iter(values)
        return [map_tree(lambda leaf: next(values) if leaf is floats else leaf, tree) for tree in outline]

    def only_floats(outline, values):
        return filled([map_tree(lambda leaf: leaf if leaf is floats else None, tree) for tree in outline], values)

    def pullback(function, *trees):
        form = outline(trees)

        def of_floats(*primals):
            return tuple(function(*filled(form, primals)))

        if torch.is_grad_enabled():  # what is found is to have derivatives itself
            found, back = torch.func.vjp(of_floats, *floats(trees))[:2]
            return found, lambda *cotangents: only_floats(form, back(cotangents))
        with torch.enable_grad():
            primals = [leaf.detach().requires_grad_() for leaf in floats(trees)]
            values = of_floats(*primals)

        def pull(*cotangents):
            pairs = [pair for pair in zip(floats(values), floats(cotangents), strict=True) if pair[0].requires_grad]
            if not pairs:
                return only_floats(form, map(torch.zeros_like, primals))
            outputs, given = zip(*pairs, strict=True)
            return only_floats(form, torch.autograd.grad(outputs, primals, given, materialize_grads=True))

        return values, pull

    class Reversible(torch.autograd.Function):
        @staticmethod
        def forward(ctx, run, pull, form, *primals):
            params, event, context = filled(form, primals)
            image, log_det = run(params, event, context)
            ctx.pull, ctx.form = pull, form
            ctx.save_for_backward(image, *floats([params, context]))
            return image, log_det

        @staticmethod
        def backward(ctx, *cotangents):
            image, *kept = ctx.saved_tensors
            params, context = filled([ctx.form[0], ctx.form[2]], kept)
            return None, None, None, *floats(ctx.pull(params, image, context, cotangents))

    def reversible(run, pull, params, event, context):
        trees = [params, event, context]
        if torch._C._are_functorch_transforms_active():
            return run(*trees)
        return Reversible.apply(run, pull, outline(trees), *floats(trees))

    def vjp(function, *primals):
        with torch.enable_grad():
            primals = tuple(x if x.requires_grad else x.detach().requires_grad_() for x in primals)
            values = tuple(function(*primals))

        def pull(*cotangents):
            # What does not depend on the primals has no graph; the others' is kept, for derivatives of the values.
            pairs = [(value, c) for value, c in zip(values, cotangents, strict=True) if value.requires_grad]
            if not pairs:
                return tuple(map(torch.zeros_like, primals))
            outputs, cotangents = zip(*pairs, strict=True)
            return torch.autograd.grad(outputs, primals, cotangents, retain_graph=True, materialize_grads=True)

        return values if torch.is_grad_enabled() else tuple(value.detach() for value in values), pull

    def jacobian(function, x):
        directions = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        along = torch.func.vmap(lambda e: torch.func.jvp(function, (x,), (e.expand(x.shape),))[1], out_dims=-1)
        return along(directions)

    # Without waiting for the device to say whether it is one, or has one.
    def cholesky(matrix):
        return torch.linalg.cholesky_ex(matrix)[0]

    def inv(matrix):
        return torch.linalg.inv_ex(matrix)[0]

    convolutions = {"conv2d": conv2d, "conv1d": _conv1d(conv2d)}
    # torch.compile of torch 2.5 cannot trace NumPy's broadcast_shapes.
    products = {"linear": linear, "matmul_add": matmul_add, "broadcast_shapes": torch.broadcast_shapes}
    parts = {"reordered": reordered, "split": split, "cholesky": _widened(xp, cholesky), "inv": _widened(xp, inv)}
    own = products | parts | {"vmap": vmap, "collect": collect}
    return _extended(
        xp,
        **(shared | convolutions | own | {"reversible": reversible}),
        # At its default threshold torch's softplus becomes the identity and loses 1e-9 in float64.
        softplus=lambda x: F.softplus(x, threshold=40.0),
        sigmoid=torch.sigmoid,
        silu=F.silu,
        elu=F.elu,
        relu=F.relu,
        softmax=lambda x, axis=0: torch.softmax(x, dim=axis),
        log_softmax=lambda x: torch.log_softmax(x, dim=0),
        logsumexp=lambda x: torch.logsumexp(x, dim=0),
        log_ndtr=_log_ndtr(xp, torch.special.erfc),
        pick=pick,
        solve_unit_triangular=_widened(xp, solve_unit_triangular),
        stop_gradient=lambda x: x.detach(),
        vjp=vjp,
        pullback=pullback,
        jacobian=jacobian,
    )


def _jax_namespace():
    import jax
    import jax.numpy as xp

    shared = _shared(xp)

    # LAPACK in a batch waits for the threads of XLA, in them: with two of these, eight gradients of determinants, of
    # triangular solves, or of factors of Cholesky or QR in one program waited forever (jaxlib 0.10.2). So batches are
    # done by hand, in loops over the columns, and alone single matrices by LAPACK.
    def substituted(matrix, x, upper=False):
        """``solve_unit_triangular`` of columns."""
        strict = xp.triu(matrix, 1) if upper else xp.tril(matrix, -1)

        def solve(strict, x, upper):
            def step(x, item):
                k, column = item
                return x - column[..., None] * xp.take(x, k, axis=-2)[..., None, :], None

            items = xp.arange(strict.shape[-1]), xp.moveaxis(strict, -1, 0)
            return jax.lax.scan(step, x, items, reverse=upper)[0]

        found, back = (lambda _, x: solve(strict, x, upper)), (lambda _, x: solve(strict.mT, x, not upper))
        return jax.lax.custom_linear_solve(lambda z: z + strict @ z, x, found, back)

    def solve_lower(triangle, x):
        scale = xp.diagonal(triangle, axis1=-2, axis2=-1)
        return substituted(triangle / scale[..., None, :], x) / scale[..., None]

    def solve_unit_triangular(matrix, x, upper=False):
        if matrix.ndim == 2:
            solve = functools.partial(jax.scipy.linalg.solve_triangular, lower=not upper, unit_diagonal=True)
            return solve(matrix, x.reshape((-1, x.shape[-1])).mT).mT.reshape(x.shape)
        batch = xp.broadcast_shapes(matrix.shape[:-2], x.shape[:-1])
        matrix = xp.broadcast_to(matrix, batch + matrix.shape[-2:])
        return substituted(matrix, xp.broadcast_to(x, batch + x.shape[-1:])[..., None], upper)[..., 0]

    @jax.custom_jvp
    def cholesky(matrix):
        if matrix.ndim == 2:
            return xp.linalg.cholesky(matrix)
        place = xp.arange(matrix.shape[-1])

        def step(rest, k):
            column = xp.where(place >= k, xp.take(rest, k, axis=-1), 0.0)
            column = column / xp.sqrt(xp.take(column, k, axis=-1))[..., None]
            return rest - column[..., None] * column[..., None, :], column

        return xp.moveaxis(jax.lax.scan(step, matrix, place)[1], 0, -1)

    @cholesky.defjvp
    def cholesky_jvp(primals, tangents):
        lower = cholesky(*primals)
        moved = solve_lower(lower, solve_lower(lower, tangents[0]).mT)
        return lower, lower @ (xp.tril(moved) - 0.5 * xp.eye(moved.shape[-1], dtype=moved.dtype) * moved)

    @jax.custom_jvp
    def orthonormal(matrix):
        """By Householder's reflections, with the signs of LAPACK."""
        if matrix.ndim == 2:
            return xp.linalg.qr(matrix)[0]
        place = xp.arange(matrix.shape[-2])[:, None]

        def reflected(x, vector):
            return x - 2 * vector * (vector.mT @ x)

        def step(rest, k):
            kept = xp.where(place >= k, xp.take(rest, k, axis=-1)[..., None], 0.0)
            is_there = xp.all((place == k) | (kept == 0), axis=-2, keepdims=True)
            kept = kept / xp.where(is_there, 1.0, xp.max(xp.abs(kept), axis=-2, keepdims=True))
            length = xp.sqrt(xp.sum(kept**2, axis=-2, keepdims=True))
            vector = kept + xp.where(place == k, xp.where(kept < 0, -length, length), 0.0)
            norm = xp.sqrt(xp.sum(vector**2, axis=-2, keepdims=True))
            vector = xp.where(is_there, 0.0, vector / xp.where(is_there, 1.0, norm))
            return reflected(rest, vector), vector

        vectors = jax.lax.scan(step, matrix, xp.arange(matrix.shape[-1]))[1]
        frame = xp.broadcast_to(xp.eye(matrix.shape[-2], matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
        return jax.lax.scan(lambda x, vector: (reflected(x, vector), None), frame, vectors, reverse=True)[0]

    @orthonormal.defjvp
    def orthonormal_jvp(primals, tangents):
        frame = orthonormal(*primals)
        upper = frame.mT @ primals[0]
        moved = solve_lower(upper.mT, tangents[0].mT).mT
        inside = frame.mT @ moved
        turn = xp.tril(inside, -1)
        return frame, frame @ (turn - turn.mT - inside) + moved

    def conv2d(x, weight, bias, padding=((0, 0), (0, 0)), dilation=(1, 1)):
        if weight.ndim > 4:  # the derivative of a convolution in groups takes a hundred times as long on a CPU
            x = xp.pad(x, (*((0, 0),) * (x.ndim - 2), *padding))
            return shared["conv2d"](x, weight, bias, dilation=dilation)
        images = x.reshape((math.prod(x.shape[:-3]), *x.shape[-3:]))
        y = jax.lax.conv_general_dilated(images, weight, (1, 1), padding, rhs_dilation=dilation)
        return y.reshape((*x.shape[:-3], *y.shape[1:])) + bias[..., None, None]

    def pick(table, index):
        # XLA fuses both with what comes before and after, which it does not do with a gather. The chain takes a tenth
        # of the time of the sum over a mask, but is compiled for twice as long where a table has eight rows.
        if table.shape[0] <= 6:
            picked = xp.broadcast_to(table[0], xp.broadcast_shapes(table.shape[1:], index.shape))
            for i in range(1, table.shape[0]):
                picked = xp.where(index == i, table[i], picked)
            return picked
        rows = xp.arange(table.shape[0]).reshape(-1, *(1,) * index.ndim)
        return xp.sum(xp.where(rows == index, table, xp.zeros_like(table)), axis=0)

    def split(x, sizes, axis=0):
        # Its derivative is one concatenation; that of slices is a sum of arrays that are mostly zeros.
        return jax.lax.split(x, tuple(sizes), axis=axis % x.ndim)

    def reordered(x, order, pattern):
        # A transposed grid spares the sum into zeros that is the derivative of a gather: of a coupling flow of 1,024
        # coordinates a step takes 0.7 of the time. In torch a gather is faster up to some hundred coordinates.
        if isinstance(pattern, tuple):
            return xp.swapaxes(x.reshape(*x.shape[:-1], *pattern), -1, -2).reshape(x.shape)
        return xp.take(x, order, axis=-1)

    def fori_loop(n, body, carry):
        return jax.lax.fori_loop(0, n, body, carry)

    def scan(body, carry, layers, n, reverse=False):
        return jax.lax.scan(lambda c, layer: (body(c, layer), None), carry, layers, length=n, reverse=reverse)[0]

    def collect(n, body, carry, *items, reverse=False):
        return jax.lax.scan(lambda c, item: body(item[0], c, *item[1:]), carry, (xp.arange(n), *items), reverse=reverse)

    def vjp(function, *primals):
        values, pull = jax.vjp(function, *primals)
        return values, lambda *cotangents: jax.lax.stop_gradient(pull(cotangents))

    def jacobian(function, x):
        def along(direction):
            return jax.jvp(function, (x,), (xp.broadcast_to(direction, x.shape),))[1]

        return jax.vmap(along, out_axes=-1)(xp.eye(x.shape[-1], dtype=x.dtype))

    def pullback(function, *trees):
        values, pull = jax.vjp(function, *trees)

        def pull_floats(*cotangents):
            found = pull(cotangents)
            return jax.tree.map(lambda leaf: None if leaf.dtype == jax.dtypes.float0 else leaf, found)

        return values, pull_floats

    def reversible(run, pull, params, event, context):
        def keep(params, event, context):
            image, log_det = run(params, event, context)
            return (image, log_det), (params, image, context)

        mapped = jax.custom_vjp(run)
        mapped.defvjp(keep, lambda kept, cotangents: pull(*kept, cotangents))
        return mapped(params, event, context)

    def vmap(function, *trees):
        return jax.vmap(function)(*trees)

    def segment(x, bounds, i, axis):
        # i may be traced, so all segments have the same length: entries of a neighbour become zeros.
        lengths = np.diff(bounds)
        length, axis = int(lengths.max()), x.ndim + axis
        starts = np.minimum(bounds[:-1], x.shape[axis] - length)
        start = xp.asarray(starts)[i]
        window = jax.lax.dynamic_slice_in_dim(x, start, length, axis)
        if (lengths == length).all():
            return window
        place = start + xp.arange(length).reshape(-1, *(1,) * (x.ndim - axis - 1))
        inside = (place >= xp.asarray(bounds)[i]) & (place < xp.asarray(bounds)[i + 1])
        return xp.where(inside, window, xp.zeros_like(window))

    @jax.custom_jvp
    def eliminated(matrix):
        """The inverse and the log determinant, by elimination without a search for pivots."""
        place = xp.arange(matrix.shape[-1])

        def step(k, carry):
            matrix, log_det = carry
            here = place == k
            row, column = xp.take(matrix, k, axis=-2), xp.take(matrix, k, axis=-1)
            pivot = xp.take(row, k, axis=-1)
            row = xp.where(here, 1.0, row) / pivot[..., None]
            rest = xp.where(here, 0.0, matrix) - xp.where(here, 0.0, column)[..., None] * row[..., None, :]
            matrix = xp.where(here[:, None], row[..., None, :], rest)
            return matrix, log_det + xp.log(xp.abs(pivot))

        return jax.lax.fori_loop(0, matrix.shape[-1], step, (matrix, xp.zeros_like(matrix[..., 0, 0])))

    @eliminated.defjvp
    def eliminated_jvp(primals, tangents):
        inverse, log_det = eliminated(*primals)
        moved = inverse @ tangents[0]
        return (inverse, log_det), (-moved @ inverse, xp.trace(moved, axis1=-2, axis2=-1))

    inverses = {
        "cholesky": _widened(xp, cholesky),
        "orthonormal": _widened(xp, orthonormal),
        "inv": _widened(xp, lambda matrix: eliminated(matrix)[0]),
        "log_abs_det": _widened(xp, lambda matrix: eliminated(matrix)[1]),
    }
    loops = {"fori_loop": fori_loop, "vmap": vmap, "scan": scan, "collect": collect, "reversible": reversible}
    own = {"reordered": reordered, "split": split, "segment": segment, "conv2d": conv2d, "conv1d": _conv1d(conv2d)}
    return _extended(
        xp,
        **(shared | loops | own | inverses),
        softplus=jax.nn.softplus,
        sigmoid=jax.nn.sigmoid,
        silu=jax.nn.silu,
        elu=jax.nn.elu,
        relu=jax.nn.relu,
        softmax=lambda x, axis=0: jax.nn.softmax(x, axis=axis),
        log_softmax=lambda x: jax.nn.log_softmax(x, axis=0),
        logsumexp=lambda x: jax.nn.logsumexp(x, axis=0),
        log_ndtr=_log_ndtr(xp, jax.scipy.special.erfc),
        pick=pick,
        solve_unit_triangular=_widened(xp, solve_unit_triangular),
        stop_gradient=jax.lax.stop_gradient,
        vjp=vjp,
        pullback=pullback,
        jacobian=jacobian,
    )


for _library in ("torch", "jax"):
    if _library in sys.modules:
        build(_library)
