"""One switch for all progress bars."""

from __future__ import annotations

import sys
from typing import Any

_shown: bool | None = None  # what set_progress said


def set_progress(shown: bool | None) -> None:
    """Show or hide the progress bars of all trainings, wherever their ``progress`` is not given.

    Args:
        shown: whether to show them; ``None``, as it is at first, shows them in terminals and notebooks only.

    Raises:
        TypeError: if it is none of True, False and None.

    Example:
        >>> import flowppl as fp
        >>> fp.set_progress(False)
        >>> fp.set_progress(None)
    """
    global _shown
    if shown is not None and not isinstance(shown, bool):
        raise TypeError(f"set_progress: expected True, False or None, got {shown!r}")
    _shown = shown


def progress_bar(label: str, total: int, unit: str, progress: bool | None = None, done: int = 0) -> Any:
    """A ``tqdm`` bar.

    Args:
        label: who trains.
        total: how many units there will be.
        unit: the name of a unit.
        progress: whether to show it; ``None`` is what :func:`set_progress` said.
        done: how many units there have been.
    """
    from tqdm.auto import tqdm  # comes with the adapters

    shown = _shown if progress is None else progress
    if shown is None:
        shown = sys.stderr.isatty() or _is_notebook()
    return tqdm(total=total, initial=done, desc=label, unit=unit, disable=not shown)


def set_total(bar: Any, total: int) -> None:
    """Correct how many units there will be."""
    bar.total = total
    if hasattr(bar, "container"):  # in a notebook a widget of its own has to know
        bar.container.children[1].max = total
    bar.refresh()


def _is_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")
