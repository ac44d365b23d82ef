"""What is wrong with the arguments of a model, or with the order of those of a function, said in words."""

from __future__ import annotations

import contextlib
import functools
import inspect
import traceback
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flowppl.bijections.contract import Bijection
from flowppl.checks import describe, did_you_mean, level_of_caller
from flowppl.recipes import recipe_of


def check_roles(owner: str, order: str, is_guide: Callable[[Any], bool], **given: Any) -> None:
    """Raise TypeError unless a model, and a guide if there is one, can be what they are given as.

    Args:
        owner: whose arguments they are.
        order: how it is called.
        is_guide: whether a value is one of the host's guides.
        given: the model and, if it is needed, the guide, by name.
    """
    for name, value in given.items():
        if not callable(value):
            raise TypeError(f"{owner}: {name} must be a function with sample sites, got {describe(value)}; {order}")
    if is_guide(given["model"]):
        raise TypeError(f"{owner}: model is a guide, of type {type(given['model']).__name__}; {order}")
    check_instance(owner, given.get("guide"))


def check_instance(owner: str, guide: Any) -> None:
    """Raise TypeError if a guide is the class of one."""
    if isinstance(guide, type):
        raise TypeError(f"{owner}: guide is the class {guide.__name__}; pass {guide.__name__}(model)")


def check_fit(guide: Any, flow: Any, num_modes: Any, args: tuple, is_guide: Callable[[Any], bool]) -> None:
    """Raise TypeError for what ``fit`` cannot mean by a guide, a flow and a number of modes."""
    for name, value in (("flow", flow), ("num_modes", num_modes)):
        if guide is not None and value is not None:
            raise TypeError(
                f"fit: {name}={describe(value)} beside guide=; {name} is that of the AutoFlow which fit makes where "
                "there is no guide: leave one of the two out"
            )
    if guide is not None and not callable(guide):
        choice = repr(guide) if isinstance(guide, str) else "..."
        raise TypeError(f"fit: guide must be a guide, got {describe(guide)}; for a flow pass flow={choice}")
    check_instance("fit", guide)
    if args and is_guide(args[0]):
        raise TypeError("fit: the first argument of the model is a guide; pass it as guide=...")


def with_options(flow: Any, options: Mapping[str, Any], function: Callable[..., Any]) -> Any:
    """The choice of a flow as a function of the dimension, with the options of its recipe; as it is without any.

    Args:
        flow: the choice of a flow of ``AutoFlow``.
        options: by keyword, all that are not its own.
        function: where its own are arguments by keyword only.

    Raises:
        TypeError: if the choice is not a recipe, or its recipe has no such option.
        ValueError: if no flow has this name.
    """
    if not options:
        return flow
    unknown = next(iter(options))
    if isinstance(flow, Bijection) or not (isinstance(flow, str) or callable(flow)) or flow == "auto":
        raise TypeError(
            f"AutoFlow has no option {unknown!r}; it takes those of a recipe where flow is one, as in "
            f'AutoFlow(model, flow="realnvp", num_flows=4){did_you_mean(unknown, _keywords(function))}'
        )
    recipe = recipe_of(flow) if isinstance(flow, str) else flow
    try:
        inspect.signature(recipe).bind(1, **options)
    except TypeError as error:
        taken = ", ".join(list(inspect.signature(recipe).parameters)[1:]) or "none"
        name = flow if isinstance(flow, str) else getattr(flow, "__name__", "the recipe")
        raise TypeError(f"AutoFlow: {error}; the options of {name} are {taken}") from None
    return functools.partial(recipe, **options)


def _keywords(function: Callable[..., Any]) -> list[str]:
    return [name for name, each in inspect.signature(function).parameters.items() if each.kind is each.KEYWORD_ONLY]


@contextlib.contextmanager
def telling_of_numpyro() -> Iterator[None]:
    """Say of what a site of NumPyro raises in Pyro, where nothing gives it a key, that it is of the other language."""
    try:
        yield
    except AssertionError as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").split(".")[0] != "numpyro":
            raise
        raise TypeError(
            "the model calls numpyro.sample, which Pyro does not see; take fit and guides from flowppl.numpyro, or "
            "pyro.sample in the model"
        ) from error


def check_loss(loss: Any, *methods: str) -> None:
    """Raise TypeError unless ``loss`` is an objective with these methods."""
    if loss is not None and (isinstance(loss, type) or not all(hasattr(loss, method) for method in methods)):
        what = f"the class {loss.__name__}" if isinstance(loss, type) else describe(loss)
        raise TypeError(f"fit: loss must be an objective such as Trace_ELBO(), got {what}")


def check_arguments(
    owner: str, model: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any], function: Any
) -> None:
    """Raise TypeError if a model does not take these arguments.

    Args:
        owner: whose arguments they were.
        model: the model. Its arguments are looked up through handlers, ``partial`` and decorators; where these have
            arguments of their own, or hide those of the model, nothing is checked.
        args: the arguments.
        kwargs: the keyword arguments, also the misspelt options of ``function``.
        function: the function that was called; its options are its arguments by keyword only.
    """
    signature = _signature(model)
    if signature is None:
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        names = list(signature.parameters)
        takes = f"the model's arguments are {', '.join(names) or 'none'}"
        message = f"{owner}: the model cannot be called with these arguments: {error}; {takes}"
        parameters = signature.parameters.values()
        unknown = [name for name in kwargs if name not in names]
        places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        missing = [p.name for p in places[len(args) :] if p.default is p.empty and p.name not in kwargs]
        missing += [
            p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.name not in kwargs
        ]
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            options = _keywords(function)
            hint = did_you_mean(unknown[0], [*options, *names]) or "."
            message = (
                f"{owner}: model takes no argument {unknown[0]!r}, nor does {owner}{hint} {owner}'s options are "
                f"{', '.join(options)}; {takes}"
            )
        elif missing:
            message = f"{owner}: the model's argument {missing[0]!r} is missing; {takes}"
        elif len(args) > len(places) and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
            message = f"{owner}: the model takes {len(places)} arguments by position, got {len(args)}; {takes}"
            if callable(args[0]) and owner == "fit":
                message += ". If the first of them is a guide, pass it as guide=..."
        raise TypeError(message) from None


def takes(model: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> bool:
    """Whether a model takes these arguments, as far as that can be known."""
    signature = _signature(model)
    try:
        return signature is None or signature.bind(*args, **kwargs) is not None
    except TypeError:
        return False


def warn_of_no_data(model: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Warn that a model that observes nothing has arguments that were left out, if it has such."""
    signature = _signature(model)
    if signature is None:
        return
    given = signature.bind_partial(*args, **kwargs).arguments
    names = [repr(name) for name, each in signature.parameters.items() if each.default is None and name not in given]
    if names:
        warnings.warn(
            f"fit: the model observes nothing, so that what is fitted is its prior. Left out, and so None: "
            f"{', '.join(names)}. If that holds the data, pass it, as in fit(model, x, y); if not, pass None",
            RuntimeWarning,
            stacklevel=level_of_caller(),
        )


def _signature(function: Any) -> inspect.Signature | None:
    """That of a function under its handlers and decorators; ``None`` if it cannot be known."""
    while True:
        is_module = hasattr(function, "forward") and hasattr(function, "named_parameters")
        call = function.forward if is_module else function
        try:
            signature = inspect.signature(call, follow_wrapped=False)
            is_open = all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in signature.parameters.values())
        except (TypeError, ValueError):  # of what is written in C
            signature, is_open = None, True
        if hasattr(call, "__wrapped__"):
            if not is_open:  # a decorator with arguments of its own
                return None
            # A method that is decorated in its class has its object outside of the decorator.
            is_method = inspect.ismethod(call)
            function = types.MethodType(call.__wrapped__, call.__self__) if is_method else call.__wrapped__
        elif is_open and callable(getattr(function, "fn", None)):  # a handler of NumPyro
            function = function.fn
        else:
            return signature
