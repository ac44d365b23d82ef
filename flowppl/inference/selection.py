"""Which coordinates a user means by names of sites or coordinates, as ArviZ takes them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

from flowppl.checks import did_you_mean, level_of_caller

MAX_SHOWN = 6  # coordinates, unless they are named
MAX_NAMED = 16


def select(owner: str, known: list[str], var_names: str | Sequence[str] | None, filter_vars: str | None) -> list[str]:
    """The coordinates that are meant by names of sites or coordinates."""
    if filter_vars not in (None, "like", "regex"):
        raise ValueError(f"{owner}: filter_vars must be None, 'like' or 'regex', got {filter_vars!r}")
    wanted = [var_names] if isinstance(var_names, str) else var_names
    chosen = known if wanted is None else _named(owner, known, list(wanted), filter_vars)
    if wanted is None and len(chosen) > MAX_SHOWN:
        warnings.warn(
            f"{owner} shows the first {MAX_SHOWN} of {len(known)} coordinates; say which by var_names=",
            UserWarning,
            stacklevel=level_of_caller(),
        )
        return chosen[:MAX_SHOWN]
    if not chosen:
        raise ValueError(f"{owner}: there is nothing to show; var_names leave out all coordinates")
    if len(chosen) > MAX_NAMED:
        raise ValueError(
            f"{owner} shows up to {MAX_NAMED} coordinates, and var_names mean {len(chosen)}; name some of them, such "
            f"as var_names={chosen[:2]}"
        )
    return chosen


def _named(owner: str, known: list[str], wanted: list[str], filter_vars: str | None) -> list[str]:
    sites = list(dict.fromkeys(name.partition("[")[0] for name in known))
    groups = []
    for each in wanted:
        name = each.removeprefix("~")
        if filter_vars == "like":
            group = [one for one in known if name in one]
        elif filter_vars == "regex":
            group = [one for one in known if re.search(name, one)]
        else:
            group = [one for one in known if name in (one, one.partition("[")[0])]
        if not group:
            near = did_you_mean(name, [*sites, *known])
            raise ValueError(
                f"{owner}: var_names must be among the sites {sites} or coordinates of them, got {each!r}{near}"
            )
        groups.append(group)
    excluded = {one for each, group in zip(wanted, groups, strict=True) if each.startswith("~") for one in group}
    if len(excluded) and all(each.startswith("~") for each in wanted):
        groups = [known]
    return [one for one in dict.fromkeys(one for group in groups for one in group) if one not in excluded]
