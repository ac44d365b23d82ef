"""Flax modules as networks of layers."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowppl._arrays.tree import Tree, leaves, nested
from flowppl.checks import describe
from flowppl.declare import Constant, Normal
from flowppl.networks import modules


class ModuleNetwork(modules.ModuleNetwork):
    r"""A ``flax.nnx`` module as the network of a layer, such as :class:`flowppl.Coupling`.

    ``network=module`` is short for ``network=ModuleNetwork(module)``. The module is read once: a flow has weights of
    its own, which are trained and stand in the parameters, and the module itself stays as it is.

    **First weights** are drawn anew for every layer and key, in the default dtype. Flax's layers do not keep how they
    draw theirs: where the numbers of an array are not all equal, each layer draws it from a normal distribution of mean
    zero and of their mean square. A module that draws its weights in another way is given by a function that makes it,
    ``lambda rngs: MyModule(..., rngs=rngs)``, or by its class; that is then called with a key for each layer.

    **Start.** The layer starts as the identity, as guides and deep flows should: the weights of the last layer of the
    module, the one in which its output is linear, start at zero. If there is none, the output is multiplied by trained
    numbers that do, one for each (for each channel of an image). With ``identity_start=False`` it is as it is.

    **Shapes.** The module sees one axis of rows, ``(n, ...)``, whatever the batch axes of the flow. A context goes to
    the argument ``context`` of its ``__call__``, if that has one, as an array ``(n, context_dim)``. Otherwise it
    follows the input along its first axis after the rows: the module takes as many numbers more, or channels of an
    image, each of one number everywhere. Channels come first; where a layer of flax has them last, move the axis.

    The module must be a function of its input alone, the same for each row: no batch normalisation, no dropout, unless
    ``module.eval()`` is called first, which makes them fixed. Variables that are no ``nnx.Param`` are constants.

    Args:
        module: the module, made outside of ``jit`` and models, or a function of ``rngs`` that makes one, such as its
            class.
        identity_start: whether the output starts at zero.

    Raises:
        TypeError: if it is no module, nor makes one.
        ValueError: for parameters that cannot be drawn anew. In a layer, for a module that does not map to what the
            layer needs, or keeps a state.

    Example:
        >>> import jax, flowppl as fp
        >>> from flax import nnx
        >>> from flowppl.numpyro import Flow, ModuleNetwork
        >>> rngs = nnx.Rngs(0)
        >>> net = nnx.Sequential(nnx.Linear(2, 16, rngs=rngs), nnx.silu, nnx.Linear(16, 4, rngs=rngs))
        >>> flow = Flow.init(jax.random.key(0), fp.Repeat(fp.Coupling(4, network=net), 3))
        >>> flow().sample(jax.random.key(1), (5,)).shape
        (5, 4)
        >>> flow.transform.params["network"]["module"]["layers"]["0"]["kernel"].shape
        (3, 2, 16)
        >>> layer = fp.Coupling(4, network=ModuleNetwork(net, identity_start=False))
    """

    def __init__(self, module: Any, identity_start: bool = True) -> None:
        from flax import nnx

        super().__init__(module, identity_start)
        self._is_module = isinstance(module, nnx.Module)
        kind, self._graph, state, self._rest = self._opened() if self._is_module else self._abstract()
        flat = dict(nnx.to_flat_state(state))
        self._variables = {".".join(map(str, path)): (path, variable) for path, variable in flat.items()}
        arrays = {name: _value(variable) for name, (_, variable) in self._variables.items()}
        self.shapes = {name: tuple(array.shape) for name, array in arrays.items()}
        self._arrays = arrays
        self.takes_context = "context" in inspect.signature(kind.__call__).parameters
        self._initializers = self._of_instance(arrays) if self._is_module else {}

        def draw_one(seed):
            made = self._made(jax.random.wrap_key_data(seed, impl="threefry2x32"))
            return _by_name(nnx.state(made, nnx.Param))

        self._draw_all = jax.jit(jax.vmap(draw_one))
        self._evaluate = jax.jit(lambda weights, x, context: self._merged(nested(weights))(x, **context))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.module, self.identity_start)

    def constants(self) -> Tree:
        return {}  # they are closed over

    def draw(self, draws, num):
        like = draws.full((), 0.0)
        if not isinstance(like, (jax.Array, np.ndarray)):
            raise TypeError(f"network={self!r} is a module of flax, which only flowppl.numpyro can train")
        if self._is_module:
            return {name: self._initializers[name](draws, (num, *shape)) for name, shape in self.shapes.items()}
        words = (draws.uniform((num, 4)) * 65536).astype(np.uint32)
        found = self._draw_all(words[:, :2] * 65536 + words[:, 2:])
        return {name: found[name].astype(like.dtype) for name in self.shapes}

    def apply(self, params, x, **context):
        if not isinstance(x, jax.Array):
            raise TypeError(f"network={self!r} is a module of flax and takes arrays of JAX, got {describe(x)}")
        return self._merged(params)(x, **context)

    def try_out(self, x_shape, **context_shape):
        from flax import nnx

        found: list = []

        def call(weights, rest, x, context):
            module = self._merged(weights, rest)
            before = _by_name(nnx.state(module))
            found.append(module(x, **context))
            after = _by_name(nnx.state(module, nnx.Not(nnx.Intermediate)))
            found.extend(name for name, value in after.items() if before.get(name) is not value)

        floats = functools.partial(jax.ShapeDtypeStruct, dtype=jax.dtypes.canonicalize_dtype(float))
        weights = nested({name: floats(shape) for name, shape in self.shapes.items()})
        jax.eval_shape(
            call, weights, self._rest, floats(x_shape), {name: floats(s) for name, s in context_shape.items()}
        )
        output, *changed = found
        if changed:
            return (
                f"changes {', '.join(changed[:3])} when it is called, as batch normalisation and dropout do, and a "
                "flow keeps no such state; call module.eval() before, which fixes it, or use a layer without, such as "
                "LayerNorm or GroupNorm"
            )
        if not isinstance(output, jax.Array):
            return f"must give one array, got {describe(output)}"
        return tuple(output.shape)

    def example(self):
        if self._is_module:
            return {name: np.asarray(array) for name, array in self._arrays.items()}
        with jax.ensure_compile_time_eval():
            drawn = self._draw_all(np.zeros((1, 2), np.uint32))
            return {name: np.asarray(drawn[name][0]) for name in self.shapes}

    def evaluate(self, weights, x, **context):
        with jax.ensure_compile_time_eval():
            return np.asarray(self._evaluate(weights, x, context))

    def _merged(self, weights: Tree, rest: Any = None) -> Any:
        """The module with these weights."""
        from flax import nnx

        flat = {".".join(path): leaf for path, leaf in leaves(weights)}
        dtype = next((leaf.dtype for leaf in flat.values()), jax.dtypes.canonicalize_dtype(float))

        def cast(leaf):
            return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, np.floating) else leaf

        rest = jax.tree.map(cast, self._rest if rest is None else rest)
        state = nnx.from_flat_state((path, v.replace(flat[name])) for name, (path, v) in self._variables.items())
        return nnx.merge(self._graph, state, rest)

    def _made(self, key: jax.Array) -> Any:
        """A module by the function that was given."""
        from flax import nnx

        kind: Any = _function(self.module)
        if isinstance(kind, type):
            kind = kind.__init__  # type: ignore[misc]  # that of the class itself only calls it
        by_name = "rngs" in inspect.signature(kind).parameters
        module = self.module(rngs=nnx.Rngs(key)) if by_name else self.module(nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise TypeError(f"network={self!r} must make a flax.nnx.Module, got {describe(module)}")
        return module

    def _opened(self) -> tuple[type, Any, Any, Any]:
        """The class of a module, its structure, its trained state, and the rest of it."""
        from flax import nnx

        graph, *states = nnx.split(self.module, nnx.Param, ...)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(states)):
            raise ValueError(
                f"network={self!r} was made inside of jit or a model; make it before, or give a function that makes "
                "it, network=lambda rngs: ..."
            )
        return type(self.module), graph, states[0], states[1]

    def _abstract(self) -> tuple[type, Any, Any, Any]:
        """The same of what the function makes; only shapes of the trained state."""
        from flax import nnx

        found: list = []

        def parts(key):
            module = self._made(key)
            if self._made(key) is module:
                raise ValueError(f"network={self!r} must make a new module at each call; give the module itself, or so")
            graph, *states = nnx.split(module, nnx.Param, ...)
            found.extend((type(module), graph))
            return states

        state, rest = jax.eval_shape(parts, jax.random.key(0))
        if jax.tree.leaves(rest):
            with jax.ensure_compile_time_eval():
                rest = nnx.state(self._made(jax.random.key(0)), nnx.Not(nnx.Param))
        return found[0], found[1], state, rest

    def _of_instance(self, arrays: dict[str, jax.Array]) -> dict[str, Any]:
        """How the arrays of a module are drawn anew; raise ValueError where that is not known."""
        from flax import nnx

        owners = {".".join(map(str, path)): type(part).__module__ for path, part in nnx.iter_graph(self.module)}
        found: dict[str, Any] = {}
        for name, array in arrays.items():
            values = np.asarray(array, dtype=float)
            of_flax = owners.get(name.rpartition(".")[0], "").startswith("flax.")
            first = values.flat[0].item() if values.size else 0.0
            if (values == first).all() and not (of_flax and values.size == 1 and first not in (0.0, 1.0)):
                found[name] = Constant(first)
            elif of_flax:
                found[name] = Normal(float(np.sqrt((values**2).mean())))
            else:
                raise ValueError(
                    f"network={self!r}: the parameter {name!r} cannot be drawn anew for each layer; give a function "
                    "that makes the module, network=lambda rngs: ..."
                )
        return found


def read(network: Any) -> ModuleNetwork | None:
    """The network of a module, or of what makes one; None if it is neither."""
    nnx, linen = (sys.modules.get(f"flax.{name}") for name in ("nnx", "linen"))
    kind = _function(network)
    if linen is not None and isinstance(network, linen.Module):
        raise TypeError(
            f"network is a module of flax.linen, a {type(network).__name__}; give one of flax.nnx, such as a function "
            "that makes it of this one: network=lambda rngs: nnx.bridge.ToNNX(module, rngs).lazy_init(x)"
        )
    if nnx is not None and (
        isinstance(network, nnx.Module) or (isinstance(kind, type) and issubclass(kind, nnx.Module))
    ):
        return ModuleNetwork(network)
    if not (inspect.isfunction(kind) or inspect.ismethod(kind)):
        return None
    parameters = inspect.signature(network).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty]
    return ModuleNetwork(network) if len(needed) == 1 or "rngs" in needed else None


modules.READERS.append(read)


def _function(network: Any) -> Any:
    """What makes a module, without arguments that are given already."""
    return network.func if isinstance(network, functools.partial) else network


def _by_name(state: Any) -> dict[str, Any]:
    """The values of a state under names with dots."""
    from flax import nnx

    flat = nnx.to_flat_state(state)
    return {".".join(map(str, path)): _value(v) for path, v in flat}


def _value(variable: Any) -> Any:
    """The array of a variable; older versions of flax have no ``get_value``."""
    return variable.get_value() if hasattr(variable, "get_value") else getattr(variable, "value", variable)
