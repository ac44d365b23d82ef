"""What ArviZ is given of a fit: which groups there are, and the names of the axes of their arrays."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flowppl.inference.diagnostics import is_subsampled
from flowppl.version import __version__

SAMPLE_DIMS = ("chain", "draw")
Groups = dict[str, dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Site:
    """A site of a model, and what tells the names of its axes.

    Args:
        name: its name.
        plates: of each plate around it the name, the dimension counted from the right of the batch axes, the number of
            members in the batch, and of all members.
        event_dim: the number of axes that are not batch axes; ``None`` where that is not known.
        event_dims: the names of these axes, which a model may give by ``infer={"event_dims": [...]}``.
        observed: the data that were observed at it; ``None`` for others.
    """

    name: str
    plates: tuple[tuple[str, int, int, int], ...]
    event_dim: int | None
    event_dims: tuple[str, ...] = ()
    observed: np.ndarray | None = None

    def dims(self, shape: Sequence[int], event_dim: int | None, taken: Iterable[str]) -> list[str]:
        """Names for the axes of such an array: of plates, of event axes, and else as ArviZ names them."""
        names = [f"{self.name}_dim_{axis}" for axis in range(len(shape))]
        # Where it is not known what is a batch axis, as of a deterministic site, they are taken to stand first.
        batch_dim = max((-dim for _, dim, *_ in self.plates), default=0)
        if event_dim is not None:
            batch_dim = len(shape) - event_dim
        for plate, dim, size, _ in self.plates:
            axis = batch_dim + dim
            if 0 <= axis < len(shape) and shape[axis] == size:
                names[axis] = f"{plate}_dim" if plate in taken else plate
        if self.event_dims and event_dim != 0:
            names[len(shape) - len(self.event_dims) :] = self.event_dims
        return names


def wanted(sites: Mapping[str, Site], missing: Iterable[str], **switches: bool | None) -> list[str]:
    """The groups to compute.

    Args:
        sites: those of the model.
        missing: the names of latents of which there are no draws.
        switches: for each group ``True``, ``False``, or ``None`` for: if there can be one.

    Raises:
        ValueError: if there cannot be one that is asked for.
    """
    reason = ""
    if not any(site.observed is not None for site in sites.values()):
        reason = "the model observes nothing"
    elif is_subsampled((name, size, full_size) for site in sites.values() for name, _, size, full_size in site.plates):
        reason = "with these arguments the model sees a part of its data only"
    result = []
    for group, switch in switches.items():
        # To predict, what was not drawn can be drawn from the model.
        why = f"there are no draws of {', '.join(missing)}" if missing and group == "log_likelihood" else reason
        if switch and why:
            raise ValueError(f"to_arviz: there can be no {group}, as {why}; leave out {group}=True")
        if switch or (switch is None and not why):
            result.append(group)
    return result


def convert(
    groups: Groups,
    sites: Mapping[str, Site],
    coords: Mapping[str, Sequence[Any]] | None,
    dims: Mapping[str, Sequence[str]] | None,
    num_chains: int = 1,
) -> Any:
    """The groups as ``arviz.InferenceData``, or from ArviZ 1.0 as ``xarray.DataTree``.

    Args:
        groups: for each group, for each site an array, over the draws unless the group is ``observed_data``.
        sites: those of the model.
        coords: labels of the members along axes, by their names.
        dims: names of axes, by site, in the place of those of plates.
        num_chains: the number of chains, one after the other.

    Raises:
        ValueError: if there are more or fewer names than axes.
        ImportError: without arviz.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # arviz announces its own future on import
        try:
            import arviz
            import xarray
        except ImportError as error:
            raise ImportError("to_arviz needs arviz: pip install 'flowppl[arviz]'") from error
    taken = {*SAMPLE_DIMS, *(name for values in groups.values() for name in values)}
    datasets: dict[str, Any] = {}
    for group, values in groups.items():
        sample_dims = () if group == "observed_data" else SAMPLE_DIMS
        variables = {}
        for name, value in values.items():
            shape = value.shape[len(sample_dims) and 1 :]
            site = sites.get(name, Site(name, (), None))
            names = site.dims(shape, 0 if group == "log_likelihood" else site.event_dim, taken)
            if dims and name in dims:
                names = _checked(name, dims[name], len(shape), group)
            if sample_dims:
                value = value.reshape(num_chains, -1, *shape)
            variables[name] = ((*sample_dims, *names), value)
        sizes = {dim: size for names, value in variables.values() for dim, size in zip(names, value.shape, strict=True)}
        labels = {dim: (coords or {}).get(dim, np.arange(size)) for dim, size in sizes.items()}
        attrs = {"inference_library": "flowppl", "inference_library_version": __version__}
        datasets[group] = xarray.Dataset(variables, labels, attrs)
    if int(arviz.__version__.partition(".")[0]) < 1:
        return arviz.InferenceData(**datasets)
    return xarray.DataTree.from_dict(datasets)


def _checked(name: str, names: Sequence[str], rank: int, group: str) -> list[str]:
    names = [names] if isinstance(names, str) else list(names)
    if len(names) < rank or (len(names) > rank and group != "log_likelihood"):
        raise ValueError(f"to_arviz: dims[{name!r}] must name its {rank} axes without that of the draws, got {names}")
    return names[:rank]
