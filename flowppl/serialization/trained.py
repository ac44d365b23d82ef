"""``save`` and ``load``."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from flowppl._arrays.tree import Tree, leaves, map_tree, merge, select
from flowppl.bijections.contract import check_bijection
from flowppl.discrete.dequantization import Dequantized
from flowppl.discrete.pixelcnn import PixelCNN
from flowppl.inference.density import DensityFit
from flowppl.inference.density_mixture import Mixture
from flowppl.inference.diagnostics import Diagnosis, Search
from flowppl.inference.latents import check_model
from flowppl.serialization.file import BFLOAT16, Entries, check_entries, read_file, write_file
from flowppl.serialization.names import BASES, SUPPORTS, check_described, decode, encode
from flowppl.version import __version__

BACKENDS = ("pyro", "numpyro")
KINDS = {
    "fit": "Fit",
    "guide": "AutoFlow",
    "flow": "Flow",
    "transform": "FlowTransform",
    "mixture": "Mixture",
    "dequantized": "Dequantized",
    "pixelcnn": "PixelCNN",
}
# What stands there for the bijection.
DECLARED: dict[str, type] = {"mixture": Mixture, "dequantized": Dequantized, "pixelcnn": PixelCNN}
PARTS = ("base", "guide", "fit")
# The arguments of load that go to the object.
TAKEN = {"guide": {"model"}, "fit": {"model", "args", "kwargs"}}

# The entries of the metadata, and the types of their values.
ENTRIES: Entries = {
    "format": (int,),
    "flowppl": (str,),
    "backend": (str,),
    "kind": (str,),
    "bijection": (dict,),
    "base": (dict, type(None)),
    "guide": (dict, type(None)),
    "fit": (dict, type(None)),
}
GUIDE: Entries = {
    "latents": (dict,),
    "other_sites": (dict,),
    "needs_args": (bool,),
    "prefix": (str,),
}
LATENT: Entries = {
    "name": (str,),
    "shape": (list,),
    "event_dim": (int,),
    "support": (dict,),
    "plates": (list,),
}
MASK: Entries = {"mask": (list,)}  # of a latent with masked members
MODES: Entries = {"log_weights": (type(None),)}  # of a guide of several
FIT: Entries = {
    "losses": (type(None),),
    "checks": (list,),
    "stopped": (str,),
    "params": (dict,),
}
KEY: Entries = {"rng_key": (type(None),), "rng_impl": (str,)}

# What a host or a constructor may raise when it is given what no flow has.
FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError)
MOST_COORDINATES = 1 << 20  # of a flow whose file has fewer weights, such as one of a Sigmoid alone
MOST_NAMES = 20  # in a message


def save(path: str | os.PathLike[str], trained: Any, params: Tree | None = None) -> None:
    """Write a flow, a mixture, a guide, a fit or a distribution of integers to a file, of which :func:`load` makes it.

    It loads in either language. Neither the model nor its data are in the file. It appears whole or not at all: if
    writing fails, one that was there before is as it was. Weights may be float64, float32, float16 or bfloat16.

    Args:
        path: the file, by custom with the ending ``.safetensors``. One that exists is replaced, and keeps its mode; a
            symbolic link is followed.
        trained: a ``Flow``, ``FlowTransform``, ``Mixture``, ``AutoFlow``, ``Fit``, ``Dequantized`` or ``PixelCNN`` of
            either language.
        params: for an ``AutoFlow`` of NumPyro its parameters, as ``svi.get_params`` gives them.

    Raises:
        TypeError: for another object, or one with a part that is no plain data, such as a module of the host, a network
            of your own that is not a dataclass, a wrapped transform, or a base distribution or support that cannot be
            named in the file.
        ValueError: for a transform at a context, if ``params`` are missing or not asked for, or if the path is that of
            a device or a pipe.
        RuntimeError: for a guide that has not seen its model.
        FileNotFoundError: if there is no such folder.
        IsADirectoryError: if the path is that of a folder.
        OSError: if writing fails, as on a full disk.

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
        chain, weights, parts["guide"] = adapter.read_guide(trained, params)
        bijection = chain.bijections[0]
    elif kind == "pixelcnn":
        weights, bijection = adapter.read_pixelcnn(trained), trained._of_x
    elif kind == "mixture":
        flows = {str(i): flow for i, flow in enumerate(trained.flows)}
        weights = {"flows": {name: adapter.read_weights(flow.transform) for name, flow in flows.items()}}
        weights["gate"], bijection = adapter.read_gate(trained), trained._of_x
        parts["base"] = {name: adapter.read_base(flow.base) for name, flow in flows.items() if flow.base is not None}
    elif kind == "dequantized":
        flows = {name: flow for name in ("flow", "noise") if (flow := getattr(trained, name)) is not None}
        weights = {name: adapter.read_weights(flow.transform) for name, flow in flows.items()}
        parts["base"] = {name: adapter.read_base(flow.base) for name, flow in flows.items() if flow.base is not None}
        bijection = trained._of_x
    else:
        transform = trained.transform if kind == "flow" else trained
        if transform.context is not None:
            raise ValueError(
                "cannot save a transform at a context: save the one without, and call condition(context) later"
            )
        weights, bijection = adapter.read_weights(transform), transform.bijection
    if kind == "flow" and trained.base is not None:
        parts["base"] = adapter.read_base(trained.base)
    config = {
        "backend": backend,
        "kind": kind,
        "bijection": encode(bijection, "bijection"),
    } | map_tree(lambda leaf: None if isinstance(leaf, np.ndarray) else leaf, parts)
    arrays = {
        ".".join(path): leaf for path, leaf in leaves({"weights": weights} | parts) if isinstance(leaf, np.ndarray)
    }
    write_file(path, config, arrays)


def load(
    path: str | os.PathLike[str],
    backend: str | None = None,
    *,
    model: Any = None,
    args: tuple[Any, ...] = (),
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
        model: the model of a guide or fit. Only ``fit(model, guide=...)``, the ``predict``, ``diagnose``, ``resample``
            and ``mcmc`` of a fit, and in NumPyro deterministic sites need it.
        args: of a fit, the arguments of its model, for the same.
        kwargs: of a fit, the keyword arguments of its model.
        classes: your own dataclasses that the flow is made of, if it is not made of flowppl's alone.

    Returns:
        A ``Flow``, a ``FlowTransform`` (for the named subclasses too), a ``Mixture``, an ``AutoFlow``, a ``Fit``, a
        ``Dequantized`` or a ``PixelCNN``. Parameters of the model itself are in the fit's ``params``; Pyro's own store
        of them is left as it is.

    Raises:
        TypeError: if the model is no function, or model, args or kwargs are given for what has none.
        ValueError: if the file is damaged, not one of :func:`save` or of a newer format, if its arrays are not those
            that its bijection declares, if a class is unknown or its constructor refuses the fields, or if Pyro does
            not map to the support of a latent.
        FileNotFoundError: if there is none.
        IsADirectoryError: if it is a folder.

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
        by = {"checkpoint": "; fit_vae or fit_density goes on from it", "checkpoint of fit": "; fit goes on from it"}
        more = by.get(config["kind"], "")
        raise ValueError(f"{path} holds a {config['kind']}, which flowppl.load does not read{more}")
    check_entries(f"{path}: its metadata", config, ENTRIES)
    given = {"model": model is not None, "args": bool(args), "kwargs": bool(kwargs)}
    if extra := {name for name, is_given in given.items() if is_given} - TAKEN.get(config["kind"], set()):
        raise TypeError(
            f"load: {', '.join(sorted(extra))} given, but {path} holds a {config['kind']}: a guide takes its model, "
            "a fit its model with args and kwargs, all else none of these"
        )
    if model is not None:
        check_model("load", model)
    adapter = _adapter(config["backend"] if backend is None else backend)
    try:
        return _make(config, arrays, adapter, tuple(classes), model, (tuple(args or ()), kwargs or {}))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except FAULTS as error:
        raise ValueError(f"{path} holds what cannot be made ({type(error).__name__}: {error})") from error


def _make(config, arrays, adapter, classes, model, arguments):
    """The object that a file describes."""
    kind = config["kind"]
    has = {part for part in PARTS if config[part] is not None}
    has -= {"base"} if kind in ("flow", "mixture", "dequantized") else set()
    if has != {"guide": {"guide"}, "fit": {"guide", "fit"}}.get(kind, set()):
        raise ValueError(f"its metadata has entries for {', '.join(sorted(has)) or 'a flow alone'}, but is of a {kind}")
    num_numbers = sum(array.size for array in arrays.values())
    known = {own.__name__: own for own in classes}
    if kind in DECLARED:
        known |= {DECLARED[kind].__name__: DECLARED[kind]}
    bijection = decode(config["bijection"], known, num_numbers)
    if kind not in DECLARED:
        check_bijection(bijection)
    elif not isinstance(bijection, DECLARED[kind]):
        raise ValueError(f"its metadata describes a {type(bijection).__name__}, but is of a {kind}")
    shape = bijection.y_shape if kind in DECLARED else bijection.x_shape
    if math.prod(shape) > max(MOST_COORDINATES, num_numbers):
        raise ValueError(f"events of shape {shape} are too large for arrays of {num_numbers} numbers")
    if config["base"] is not None:
        bases = config["base"] if kind in ("mixture", "dequantized") else {"base": config["base"]}
        for base in bases.values():
            check_described("the base distribution", base, BASES)
    if config["guide"] is not None:
        from flowppl.inference.guides import guide_bijection  # needs what only the adapters need

        _check_guide(config["guide"], bijection)
        last = max((int(name.split(".")[1]) for name in arrays if name.startswith("weights.")), default=0)
        bijection = guide_bijection(bijection, *bijection.x_shape, has_margins=last != 3)
    if config["fit"] is not None:
        check_entries("its fit", config["fit"], {**FIT, **(KEY if config["backend"] == "numpyro" else {})})
    outline = {part: config[part] or {} for part in PARTS}
    tree = _fill(outline | {"weights": _check_arrays(bijection, outline, arrays)}, arrays)
    params = select(bijection.parameters(), tree["weights"])
    if kind == "transform":
        return adapter.make_transform(bijection, params)
    if kind == "flow":
        return adapter.make_flow(bijection, params, adapter.make_base(tree["base"]) if tree["base"] else None)
    if kind == "pixelcnn":
        return adapter.make_pixelcnn(bijection, params)
    if kind == "mixture":
        bases = {name: adapter.make_base(base) for name, base in tree["base"].items()}
        flows = [
            adapter.make_flow(part, params["flows"][str(i)], bases.get(str(i)))
            for i, part in enumerate(bijection.bijections)
        ]
        return adapter.make_mixture(flows, bijection.hidden_dims, params["gate"])
    if kind == "dequantized":
        bases = {name: adapter.make_base(base) for name, base in tree["base"].items()}
        flow, noise = (
            adapter.make_flow(getattr(bijection, field), params[name], bases.get(name)) if name in params else None
            for name, field in (("flow", "bijection"), ("noise", "noise"))
        )
        return adapter.Dequantized(flow, bijection.levels, noise)
    if "log_weights" in tree["guide"]:
        params = _as_mixture(params, tree["guide"]["log_weights"])
    guide = adapter.make_guide(bijection, params, tree["guide"], absent_model if model is None else model)
    if kind == "guide":
        return guide
    fit = tree["fit"]
    check, *checks = (Diagnosis(**check) for check in map(_with_search, fit["checks"]))
    history = (fit["losses"], tuple(checks), check, fit["stopped"])
    return adapter.make_fit(guide, history, arguments, fit)


def _check_guide(guide, bijection):
    """Raise ValueError unless a guide and its latents have all their properties, and the size of the flow."""
    check_entries("its guide", guide, {**GUIDE, **MODES} if "log_weights" in guide else GUIDE)
    size = 0
    for latent in guide["latents"].values():
        has_mask = isinstance(latent, dict) and "mask" in latent
        check_entries("a latent of its guide", latent, {**LATENT, **MASK} if has_mask else LATENT)
        check_described(f"the support of {latent['name']!r}", latent["support"], SUPPORTS)
        for plate in latent["plates"]:
            if [*map(type, plate)] != [str, int, int] or plate[2] > max(MOST_COORDINATES, *latent["shape"]):
                raise ValueError(f"{latent['name']!r} cannot be in a plate of name, axis and size {plate}")
        size += _count_coordinates(latent)
    if bijection.x_shape != (size,):
        raise ValueError(f"its latents have {size} coordinates, but its flow maps events of shape {bijection.x_shape}")


def _as_mixture(params, log_weights):
    """The parameters of a guide of several modes; raise ValueError unless each has its weights."""
    num = log_weights.size
    for path, leaf in leaves(params):
        if log_weights.ndim != 1 or leaf.shape[:1] != (num,):
            raise ValueError(f"{'.'.join(path)} must have weights for {num} modes, got the shape {leaf.shape}")
    if not np.isclose(np.exp(np.asarray(log_weights, dtype=float)).sum(), 1.0, atol=1e-2):
        raise ValueError("the weights of the modes do not sum to one")
    return params | {"log_weights": log_weights}


def _count_coordinates(latent):
    """How many coordinates of a latent the guide has, which has no masked members."""
    if "mask" not in latent:
        return math.prod(latent["shape"])
    mask = np.array(latent["mask"])
    if mask.dtype != bool or list(mask.shape) != latent["shape"][: mask.ndim]:
        raise ValueError(f"the mask of {latent['name']!r} does not fit its shape {latent['shape']}")
    return int(mask.sum()) * math.prod(latent["shape"][mask.ndim :])


def absent_model(*args, **kwargs):
    """In the place of the model of a guide that was loaded without one."""
    raise RuntimeError(
        "this needs the model, and the guide was loaded without it: load(path, model=model), and of a fit with "
        "args=... if the model takes arguments"
    )


def _read_fit(fit, adapter):
    """What is known of a fit, and the parameters that are not its guide's, as a tree."""
    if not isinstance(fit.guide, adapter.AutoFlow):
        raise TypeError(f"cannot save a fit of {type(fit.guide).__name__}, only of AutoFlow; save fit.params instead")
    history = fit.history
    checks = [dataclasses.asdict(check) for check in (history.check, *history.checks)]
    return {"losses": history.losses, "checks": checks, "stopped": history.stopped} | adapter.read_fit(fit)


def _with_search(check):
    search = check.get("search")
    return check if search is None else {**check, "search": Search(**search)}


def _kind_of(trained):
    for backend in BACKENDS:
        adapter = sys.modules.get(f"flowppl.{backend}")  # there is an object of it only where it was imported
        for kind, name in KINDS.items():
            if adapter is not None and isinstance(trained, getattr(adapter, name)):
                return backend, kind
    if isinstance(trained, DensityFit):
        raise TypeError("expected a flow, got the result of fit_density: save its flow, result.flow")
    raise TypeError(
        "expected a Flow, FlowTransform or Mixture, an AutoFlow or a Fit, a Dequantized or a PixelCNN of flowppl.pyro "
        f"or flowppl.numpyro, got {type(trained).__name__}; of a guide of the host or an autoencoder, save the "
        "state_dict or params, or pickle it"
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


def _fill(outline, arrays, *name):
    """The outline with the array of its path in the place of each None."""
    if isinstance(outline, dict):
        return {key: _fill(value, arrays, *name, key) for key, value in outline.items()}
    return arrays[".".join(name)] if outline is None else outline


def _check_arrays(bijection, outline, arrays):
    """The outline of the weights and constants; raise ValueError unless the arrays are those of the outlines."""
    parameters = bijection.parameters()
    own = {".".join(name) for name, leaf in leaves(outline) if leaf is None}
    declared = {".".join(name): parameter for name, parameter in leaves({"weights": parameters})}
    _check_names(own | declared.keys(), arrays, arrays.keys())
    for name, parameter in declared.items():
        shape, dtype = arrays[name].shape, arrays[name].dtype
        if shape[len(shape) - len(parameter.shape) :] != parameter.shape:  # batch axes may stand in front
            raise ValueError(f"{name} must have the shape {parameter.shape}, got {shape}")
        if dtype.kind != "f" and dtype != BFLOAT16:
            raise ValueError(f"{name} must hold floating point numbers, got {dtype}")
    constants = bijection.constants()  # made only now, since they are as large as the weights
    weights = map_tree(lambda _: None, merge(parameters, constants))
    _check_names(own | {".".join(name) for name, _ in leaves({"weights": weights})}, arrays, ())
    for name, constant in leaves({"weights": constants}):
        if not np.array_equal(arrays[".".join(name)], constant):
            raise ValueError(
                f"the constant {'.'.join(name)} is not the one that this flowppl {__version__} makes, so that the "
                "weights would mean another flow; load it with the version that wrote it"
            )
    return weights


def _check_names(expected, arrays, allowed):
    missing, extra = sorted(expected - arrays.keys()), sorted(arrays.keys() - expected - set(allowed))
    if missing or extra:
        counts = ""
        if max(len(missing), len(extra)) > MOST_NAMES:
            counts = f" ({len(missing)} missing, {len(extra)} unexpected)"
        raise ValueError(
            f"it does not hold the arrays of its flow: missing {missing[:MOST_NAMES]}, unexpected {extra[:MOST_NAMES]}"
            f"{counts}"
        )
