"""Trained flows as files: one format, whichever language trained the flow and whichever is to use it.

The file is in the safetensors format: arrays by name and one text, no code. The names are ``weights.`` or ``base.``
followed by the path in the tree, those of a ``state_dict`` in Pyro. The text, the metadata entry ``flowppl``, is JSON:

==============  ====================================================================================
``format``      the version of this layout, an integer
``flowppl``     the version of the package that wrote the file
``backend``     "pyro" or "numpyro", the language that the flow was saved from
``kind``        "flow" or "transform"
``bijection``   the bijection: the name of its class as ``type``, and its fields, some of them such objects again
``base``        the base distribution: its name as ``type``, and its arguments, null for each array; or null
==============  ====================================================================================
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pathlib
import sys
import uuid
from collections.abc import Iterable
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

import flowppl
from flowppl._tree import leaves, map_tree, merge, select
from flowppl.bijection import check_bijection

FORMAT = 1
BACKENDS = ("pyro", "numpyro")

# Base distributions that both languages have, and the names of their arguments in the file.
BASES = {
    "Normal": ("loc", "scale"),
    "Laplace": ("loc", "scale"),
    "Cauchy": ("loc", "scale"),
    "StudentT": ("df", "loc", "scale"),
    "Uniform": ("low", "high"),
    "MultivariateNormal": ("loc", "scale_tril"),
    "Categorical": ("logits",),
    "MixtureSameFamily": ("mixture_distribution", "component_distribution"),
    "Independent": ("base_dist", "reinterpreted_batch_ndims"),
    "ExpandedDistribution": ("base_dist", "batch_shape"),
}


def save(path: str | os.PathLike, trained: Any) -> None:
    """Write a flow to one file, from which :func:`load` makes it again in either language.

    The file appears whole or not at all: if writing fails, one that was there before is as it was.

    Args:
        path: the file, by custom with the ending ``.safetensors``. One that exists is replaced.
        trained: a ``Flow`` or ``FlowTransform`` of :mod:`flowppl.pyro` or :mod:`flowppl.numpyro`.

    Raises:
        TypeError: for another object, or one with a part that is no plain data, such as a network of your own that is
            not a dataclass, a wrapped transform, or a base distribution that not both languages have.
        ValueError: for a transform at a context.

    Example:
        >>> import os, tempfile, jax.numpy as jnp, torch, flowppl as fp
        >>> from flowppl.pyro import Flow
        >>> flow = Flow(fp.realnvp(2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "flow.safetensors")
        ...     fp.save(path, flow)
        ...     same = fp.load(path, backend="numpyro")
        >>> same.bijection == flow.bijection
        True
        >>> bool(jnp.allclose(same().log_prob(jnp.ones(2)), flow().log_prob(torch.ones(2)).item()))
        True
    """
    backend = _backend_of(trained)
    adapter = _adapter(backend)
    is_flow = isinstance(trained, adapter.Flow)
    transform = trained.transform if is_flow else trained
    if transform.context is not None:
        raise ValueError(
            "cannot save a transform at a context: save the one without, and call condition(context) later"
        )
    base = adapter.read_base(trained.base) if is_flow and trained.base is not None else None
    config = {
        "format": FORMAT,
        "flowppl": flowppl.__version__,
        "backend": backend,
        "kind": "flow" if is_flow else "transform",
        "bijection": _encode(transform.bijection, "bijection"),
        "base": map_tree(lambda leaf: None if isinstance(leaf, np.ndarray) else leaf, base),
    }
    arrays = {
        ".".join(path): np.asarray(leaf, order="C")  # safetensors writes memory as it lies
        for path, leaf in leaves({"weights": adapter.read_weights(transform), "base": base})
        if isinstance(leaf, np.ndarray)
    }
    _write(pathlib.Path(path), safetensors.numpy.save(arrays, {"flowppl": json.dumps(config)}))


def load(path: str | os.PathLike, backend: str | None = None, *, classes: Iterable[type] = ()) -> Any:
    """The flow that :func:`save` wrote, in either language.

    The dtype is that of the file, the device is the default one. All weights are trainable.

    Args:
        path: the file.
        backend: "pyro" or "numpyro"; ``None`` is the one that the flow was saved from.
        classes: your own dataclasses that the flow is made of, if it is not made of flowppl's alone.

    Returns:
        A ``Flow``, or a ``FlowTransform`` if one was saved (of the named subclasses too).

    Raises:
        ValueError: if the file is not whole, not one of :func:`save` or of a newer format, if its arrays are not those
            that its bijection declares, or if a class is unknown.
        FileNotFoundError: if there is none.

    Warns:
        UserWarning: if the file holds float64 and JAX is not set to keep it.
    """
    config, arrays = _read(path)
    adapter = _adapter(config["backend"] if backend is None else backend)
    bijection = _decode(config["bijection"], path, {kind.__name__: kind for kind in classes})
    check_bijection(bijection)
    parameters, constants = bijection.parameters(), bijection.constants()
    outline = {"weights": map_tree(lambda _: None, merge(parameters, constants)), "base": config["base"] or {}}
    _check_arrays(path, outline, parameters, constants, arrays)
    tree = _fill(outline, arrays)
    params = select(parameters, tree["weights"])
    if config["kind"] == "transform":
        return adapter.make_transform(bijection, params)
    return adapter.make_flow(bijection, params, adapter.make_base(tree["base"]) if tree["base"] else None)


def check_base(distribution: Any, kind: str, hosts: tuple[str, ...]) -> None:
    """Raise TypeError unless the distribution is a host's own and of a kind that both languages have."""
    if kind not in BASES or type(distribution).__module__.partition(".")[0] not in hosts:
        raise TypeError(
            f"cannot save the base distribution, a {type(distribution).__name__}; those that can be saved are "
            f"{', '.join(BASES)}. Save flow.transform instead, and make the flow anew around it after loading"
        )


def _backend_of(trained):
    for backend in BACKENDS:
        adapter = sys.modules.get(f"flowppl.{backend}")  # there is an object of it only where it was imported
        if adapter is not None and isinstance(trained, (adapter.Flow, adapter.FlowTransform)):
            return backend
    raise TypeError(
        f"expected a Flow or FlowTransform of flowppl.pyro or flowppl.numpyro, got {type(trained).__name__}; "
        "of a guide, save guide.get_transform(...)"
    )


def _adapter(backend):
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    try:
        return importlib.import_module(f"flowppl.{backend}.serialization")
    except ImportError as error:
        other = BACKENDS[1 - BACKENDS.index(backend)]
        raise ImportError(
            f"backend {backend!r} needs what pip install 'flowppl[{backend}]' installs; "
            f"to use the flow in the other language, load(path, backend={other!r})"
        ) from error


def _encode(value, where):
    """A bijection, or what is in a field of one, as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = type(value).__name__
        if name in flowppl.__all__ and getattr(flowppl, name) is not type(value):
            raise TypeError(f"cannot save {where}: flowppl has another class {name}; give yours a name of its own")
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return {"type": name} | {field: _encode(getattr(value, field), f"{where}.{field}") for field in fields}
    if isinstance(value, (tuple, list)):
        return [_encode(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"cannot save {where}, a {type(value).__name__}: a flow is saved as its classes and their fields, which must "
        "be numbers, strings, tuples or frozen dataclasses of these. Make it one, or save the weights alone, as a "
        "state_dict or a pytree"
    )


def _decode(value, path, classes):
    """What :func:`_encode` was given; a list becomes a tuple, as a field of a hashable class must be."""
    if isinstance(value, list):
        return tuple(_decode(entry, path, classes) for entry in value)
    if not isinstance(value, dict):
        return value
    name = value["type"]
    kind = getattr(flowppl, name) if name in flowppl.__all__ else classes.get(name)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise ValueError(f"{path}: unknown class {name!r}; if it is yours, load(path, classes=({name},))")
    return kind(**{field: _decode(entry, path, classes) for field, entry in value.items() if field != "type"})


def _fill(outline, arrays, *name):
    """The outline with the array of its path in the place of each None."""
    if isinstance(outline, dict):
        return {key: _fill(value, arrays, *name, key) for key, value in outline.items()}
    return arrays[".".join(name)] if outline is None else outline


def _check_arrays(path, outline, parameters, constants, arrays):
    expected = {".".join(name) for name, leaf in leaves(outline) if leaf is None}
    if expected != arrays.keys():
        missing, extra = sorted(expected - arrays.keys()), sorted(arrays.keys() - expected)
        raise ValueError(f"{path} does not hold the arrays of its flow: missing {missing}, unexpected {extra}")
    for name, parameter in leaves({"weights": parameters}):
        shape = arrays[".".join(name)].shape
        if shape[len(shape) - len(parameter.shape) :] != parameter.shape:  # batch axes may stand in front
            raise ValueError(f"{path}: {'.'.join(name)} must have the shape {parameter.shape}, got {shape}")
    for name, constant in leaves({"weights": constants}):
        if not np.array_equal(arrays[".".join(name)], constant):
            raise ValueError(
                f"{path}: the constant {'.'.join(name)} is not the one that this flowppl {flowppl.__version__} "
                "makes, so that the weights would mean another flow; load it with the version that wrote it"
            )


def _read(path):
    """The configuration and the arrays of a file."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            text = (file.metadata() or {}).get("flowppl")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); copy or save it again") from error
    if text is None:
        raise ValueError(f"{path} was not written by flowppl.save: it has no entry 'flowppl' in its metadata")
    config = json.loads(text)
    if config["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {config['format']} and was written by flowppl {config['flowppl']}, but this flowppl "
            f"{flowppl.__version__} reads format {FORMAT}; install that version or a later one"
        )
    return config, arrays


def _write(path, content):
    """Write all of a file or nothing."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
