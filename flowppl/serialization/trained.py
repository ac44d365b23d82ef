"""Trained flows, guides and fits as files: one format, whichever language trained them and whichever is to use them.

The file is in the safetensors format: arrays by name and one text, no code. The names are ``weights.``, ``base.``,
``guide.`` or ``fit.`` followed by the path in the tree; those of weights are those of a ``state_dict`` in Pyro. The
text, the metadata entry ``flowppl``, is JSON:

==============  ====================================================================================
``format``      the version of this layout, an integer
``flowppl``     the version of the package that wrote the file
``backend``     "pyro" or "numpyro", the language that it was saved from
``kind``        "flow", "transform", "guide" or "fit"; a "checkpoint", of ``fit_vae``, has another layout
``bijection``   the bijection: the name of its class as ``type``, and its fields, some of them such objects again;
                of a guide its flow, without the affine layers, whose weights are there under the next numbers
``base``        the base distribution: its name as ``type``, and its arguments, null for each array; or null
``guide``       of a guide or fit, else null: its ``latents``, from "0" on as they lie in the unconstrained vector, each
                with its name, shape in unconstrained space, support, event_dim and plates (name, dim, size); the
                types of ``other_sites`` of the model, whether it ``needs_args``, the ``prefix`` of parameters
``fit``         of a fit, else null: its ``losses``, the ``checks`` (the first is that of the result), why it
                ``stopped``, the ``params`` of the model and, from NumPyro, its ``rng_key`` and ``rng_impl``
==============  ====================================================================================

A support is written like a base distribution, under a name that both languages have if both map to it, from the same
unconstrained numbers to the same values.
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

from flowppl._arrays.tree import Tree, leaves, map_tree, merge, select
from flowppl.bijections.autoregressive import Autoregressive
from flowppl.bijections.combine import Chain, Invert, Repeat
from flowppl.bijections.conditional import Conditional
from flowppl.bijections.contract import check_bijection
from flowppl.bijections.coupling import Coupling
from flowppl.bijections.elementwise import Bounded, Elementwise, LeakyReLU, Sigmoid, Softplus, Tanh
from flowppl.bijections.frozen import Damped, Frozen
from flowppl.bijections.linear import LU, ActNorm, ElementwiseAffine, Permute, TriangularAffine
from flowppl.bijections.orthogonal import QR, Householder
from flowppl.bijections.residual import Planar, Radial
from flowppl.bijections.subspace import Subspace
from flowppl.bijections.sylvester import HouseholderSylvester, OrthogonalSylvester, TriangularSylvester
from flowppl.inference.diagnostics import Diagnosis
from flowppl.networks import MADE, MLP
from flowppl.univariate.base import Affine, Scale, Shift
from flowppl.univariate.mixture import LogisticMixture
from flowppl.univariate.splines import CircularSpline, RationalQuadraticSpline
from flowppl.version import __version__

# What a flow in a file is made of, beside a user's own classes.
CLASSES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        LU,
        MADE,
        MLP,
        QR,
        ActNorm,
        Affine,
        Autoregressive,
        Bounded,
        Chain,
        CircularSpline,
        Conditional,
        Coupling,
        Damped,
        Elementwise,
        ElementwiseAffine,
        Frozen,
        Householder,
        HouseholderSylvester,
        Invert,
        LeakyReLU,
        LogisticMixture,
        OrthogonalSylvester,
        Permute,
        Planar,
        Radial,
        RationalQuadraticSpline,
        Repeat,
        Scale,
        Shift,
        Sigmoid,
        Softplus,
        Subspace,
        Tanh,
        TriangularAffine,
        TriangularSylvester,
    )
}
FORMAT = 1
BACKENDS = ("pyro", "numpyro")
KINDS = {"fit": "Fit", "guide": "AutoFlow", "flow": "Flow", "transform": "FlowTransform"}
PARTS = ("base", "guide", "fit")

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

# Supports of latents, and the names of their arguments in the file. From lower_cholesky on only NumPyro maps to them.
SUPPORTS = {
    "real": (),
    "interval": ("lower_bound", "upper_bound"),
    "greater_than": ("lower_bound",),
    "less_than": ("upper_bound",),
    "independent": ("base_constraint", "reinterpreted_batch_ndims"),
    "simplex": (),
    "ordered_vector": (),
    "positive_ordered_vector": (),
    "corr_cholesky": (),
    "corr_matrix": (),
    "softplus_positive": (),
    "lower_cholesky": (),
    "softplus_lower_cholesky": (),
    "scaled_unit_lower_cholesky": (),
    "positive_definite": (),
    "l1_ball": (),
    "zero_sum": ("event_dim",),
}
# The classes of both languages with those names, and others with the same map from unconstrained space.
SUPPORT_CLASSES = {"_" + name.title().replace("_", ""): name for name in SUPPORTS} | {
    "_IndependentConstraint": "independent",
    "_RealVector": "independent",
    "_RealMatrix": "independent",
    "_UnitInterval": "interval",
    "_HalfOpenInterval": "interval",
    "_OpenInterval": "interval",
    "_Circular": "interval",
    "_Positive": "greater_than",
    "_Nonnegative": "greater_than",
    "_GreaterThanEq": "greater_than",
    "_LessThanEq": "less_than",
    "_PositiveSemiDefinite": "positive_definite",
}


def save(path: str | os.PathLike, trained: Any, params: Tree | None = None) -> None:
    """Write a flow, a guide or a fit to one file, from which :func:`load` makes it again in either language.

    Neither the model nor its data are in the file. It appears whole or not at all: if writing fails, one that was
    there before is as it was.

    Args:
        path: the file, by custom with the ending ``.safetensors``. One that exists is replaced.
        trained: a ``Flow``, ``FlowTransform``, ``AutoFlow`` or ``Fit`` of either language.
        params: for an ``AutoFlow`` of NumPyro its parameters, as ``svi.get_params`` gives them.

    Raises:
        TypeError: for another object, or one with a part that is no plain data, such as a network of your own that is
            not a dataclass, a wrapped transform, or a base distribution or support that cannot be named in the file.
        ValueError: for a transform at a context, or if ``params`` are missing or not asked for.
        RuntimeError: for a guide that has not seen its model.
        FileNotFoundError: if there is no such folder.

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
    backend, kind = _kind_of(trained)
    adapter = _adapter(backend)
    if params is not None and (backend, kind) != ("numpyro", "guide"):
        raise ValueError(f"save: params go with an AutoFlow of NumPyro only; this {KINDS[kind]} has its own")
    parts: Tree = dict.fromkeys(PARTS)
    if kind == "fit":
        parts["fit"] = _read_fit(trained, adapter)
        trained, params = trained.guide, trained.params
    if kind in ("fit", "guide"):
        transform, parts["guide"] = adapter.read_guide(trained, params)
        bijection = transform.bijection.bijections[0]
    else:
        transform = trained.transform if kind == "flow" else trained
        bijection = transform.bijection
    if transform.context is not None:
        raise ValueError(
            "cannot save a transform at a context: save the one without, and call condition(context) later"
        )
    if kind == "flow" and trained.base is not None:
        parts["base"] = adapter.read_base(trained.base)
    config = {
        "backend": backend,
        "kind": kind,
        "bijection": _encode(bijection, "bijection"),
    } | map_tree(lambda leaf: None if isinstance(leaf, np.ndarray) else leaf, parts)
    arrays = {
        ".".join(path): leaf
        for path, leaf in leaves({"weights": adapter.read_weights(transform)} | parts)
        if isinstance(leaf, np.ndarray)
    }
    write_file(pathlib.Path(path), config, arrays)


def load(
    path: str | os.PathLike,
    backend: str | None = None,
    *,
    model: Any = None,
    args: tuple = (),
    kwargs: dict[str, Any] | None = None,
    classes: Iterable[type] = (),
) -> Any:
    """What :func:`save` wrote, in either language.

    The dtype is that of the file, the device is the default one. All weights are trainable. No model is called: a
    guide draws, scores and transforms without one, and the host's ``SVI`` goes on training it. In NumPyro its
    parameters are ``guide.setup()``, and those that ``svi.init`` starts from.

    Args:
        path: the file.
        backend: "pyro" or "numpyro"; ``None`` is the one that it was saved from.
        model: the model of a guide or fit. Only ``fit(model, guide=...)``, the ``diagnose`` and ``resample`` of a fit,
            and in NumPyro deterministic sites need it.
        args: of a fit, the arguments of its model, for the same.
        kwargs: of a fit, the keyword arguments of its model.
        classes: your own dataclasses that the flow is made of, if it is not made of flowppl's alone.

    Returns:
        A ``Flow``, a ``FlowTransform`` (for the named subclasses too), an ``AutoFlow`` or a ``Fit``. Parameters of the
        model itself are in the fit's ``params``; Pyro's own store of them is left as it is.

    Raises:
        ValueError: if the file is not whole, not one of :func:`save` or of a newer format, if its arrays are not those
            that its bijection declares, if a class is unknown, or if Pyro does not map to the support of a latent.
        FileNotFoundError: if there is none.

    Warns:
        UserWarning: if the file holds float64 and JAX is not set to keep it.

    Example:
        >>> import os, tempfile, torch, pyro, pyro.distributions as dist, flowppl as fp
        >>> from flowppl.pyro import AutoFlow
        >>> def model():
        ...     pyro.sample("sigma", dist.HalfNormal(1.0))
        >>> guide = AutoFlow(model)
        >>> _ = guide.setup()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "guide.safetensors")
        ...     fp.save(path, guide)
        ...     same = fp.load(path)
        >>> z = torch.ones(1)
        >>> bool(same.get_posterior().log_prob(z) == guide.get_posterior().log_prob(z))
        True
    """
    config, arrays = read_file(path)
    if config["kind"] not in KINDS:
        raise ValueError(f"{path} holds a {config['kind']}, which flowppl.load does not read; fit_vae goes on from it")
    adapter = _adapter(config["backend"] if backend is None else backend)
    bijection = _decode(config["bijection"], path, {kind.__name__: kind for kind in classes})
    check_bijection(bijection)
    if config["guide"]:
        from flowppl.inference.guides import guide_bijection  # needs what only the adapters need

        bijection = guide_bijection(bijection, *bijection.x_shape)
    parameters, constants = bijection.parameters(), bijection.constants()
    outline = {"weights": map_tree(lambda _: None, merge(parameters, constants))}
    outline |= {part: config[part] or {} for part in PARTS}
    _check_arrays(path, outline, parameters, constants, arrays)
    tree = _fill(outline, arrays)
    params = select(parameters, tree["weights"])
    if config["kind"] == "transform":
        return adapter.make_transform(bijection, params)
    if config["kind"] == "flow":
        return adapter.make_flow(bijection, params, adapter.make_base(tree["base"]) if tree["base"] else None)
    guide = adapter.make_guide(bijection, params, tree["guide"], absent_model if model is None else model)
    if config["kind"] == "guide":
        return guide
    fit = tree["fit"]
    check, *checks = (Diagnosis(**check) for check in fit["checks"])
    history = (fit["losses"], tuple(checks), check, fit["stopped"])
    return adapter.make_fit(guide, history, (tuple(args), kwargs or {}), fit)


def absent_model(*args, **kwargs):
    """In the place of the model of a guide that was loaded without one."""
    raise RuntimeError(
        "this needs the model, and the guide was loaded without it: load(path, model=model), and of a fit with "
        "args=... if the model takes arguments"
    )


def check_base(distribution: Any, kind: str, hosts: tuple[str, ...]) -> None:
    """Raise TypeError unless the distribution is a host's own and of a kind that both languages have."""
    if kind not in BASES or type(distribution).__module__.partition(".")[0] not in hosts:
        raise TypeError(
            f"cannot save the base distribution, a {type(distribution).__name__}; those that can be saved are "
            f"{', '.join(BASES)}. Save flow.transform instead, and make the flow anew around it after loading"
        )


def check_support(site: str, support: Any) -> str:
    """The name in the file of a latent's support; raise TypeError if there is none."""
    kind, own = type(support), ("torch", "pyro", "numpyro")
    if kind.__name__ not in SUPPORT_CLASSES or kind.__module__.partition(".")[0] not in own:
        raise TypeError(
            f"cannot save a guide of site {site!r}, whose support is {support}; those that can be saved are "
            f"{', '.join(SUPPORTS)}. Pickle the guide (and its params) instead"
        )
    return SUPPORT_CLASSES[kind.__name__]


def _read_fit(fit, adapter):
    """What is known of a fit, and the parameters that are not its guide's, as a tree."""
    if not isinstance(fit.guide, adapter.AutoFlow):
        raise TypeError(f"cannot save a fit of {type(fit.guide).__name__}, only of AutoFlow; save fit.params instead")
    history = fit.history
    checks = [dataclasses.asdict(check) for check in (history.check, *history.checks)]
    return {"losses": history.losses, "checks": checks, "stopped": history.stopped} | adapter.read_fit(fit)


def _kind_of(trained):
    for backend in BACKENDS:
        adapter = sys.modules.get(f"flowppl.{backend}")  # there is an object of it only where it was imported
        for kind, name in KINDS.items():
            if adapter is not None and isinstance(trained, getattr(adapter, name)):
                return backend, kind
    raise TypeError(
        "expected a Flow or FlowTransform, an AutoFlow or a Fit of flowppl.pyro or flowppl.numpyro, got "
        f"{type(trained).__name__}; of a guide, save the state_dict or params, or pickle it"
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
        if CLASSES.get(name, type(value)) is not type(value):
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
    kind = CLASSES.get(name) or classes.get(name)
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
                f"{path}: the constant {'.'.join(name)} is not the one that this flowppl {__version__} "
                "makes, so that the weights would mean another flow; load it with the version that wrote it"
            )


def read_file(path: str | os.PathLike) -> tuple[dict, dict[str, np.ndarray]]:
    """The configuration and the arrays of a file."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            text = (file.metadata() or {}).get("flowppl")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); copy or save it again") from error
    if text is None:
        raise ValueError(f"{path} was not written by flowppl: it has no entry 'flowppl' in its metadata")
    config = json.loads(text)
    if config["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {config['format']} and was written by flowppl {config['flowppl']}, but this flowppl "
            f"{__version__} reads format {FORMAT}; install that version or a later one"
        )
    return config, arrays


def check_folder(path: pathlib.Path) -> None:
    """Raise FileNotFoundError unless a file can be made there."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot save to {path}: there is no folder {path.parent}; make it first")


def write_file(path: pathlib.Path, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write all of a file or nothing."""
    check_folder(path)
    text = json.dumps({"format": FORMAT, "flowppl": __version__} | config)
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}  # it writes memory as it lies
    content = safetensors.numpy.save(arrays, {"flowppl": text})
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
