"""Checkpoints of a training: what they tell, and whether they are of this training."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from flowppl.serialization import check_entries, read_file

# Of the metadata of a checkpoint, and of the progress in it: the entries, and the types of their values.
ENTRIES = {"format": (int,), "flowppl": (str,), "kind": (str,), "seed": (int,), "fixed": (dict,), "progress": (dict,)}
PROGRESS = {
    "losses": (list,),
    "validation_losses": (list,),
    "best_epoch": (int,),
    "num_skipped": (int,),
    "stopped": (str,),
}


def digest(data):
    """A number by which other data are told from these."""
    if hasattr(data, "cpu"):
        data = data.detach().cpu()
        data = data.float() if str(data.dtype) == "torch.bfloat16" else data  # which NumPy has not
    array = np.ascontiguousarray(data)
    return zlib.crc32(array.reshape(-1).view(np.uint8).data, zlib.crc32(repr((array.shape, str(array.dtype))).encode()))


# What checkpoints of earlier versions do not tell: where it is absent it is not compared.
LOSS = "loss of the model"
_LATER = ("learning_rate", "num_epochs", "augment", LOSS)

# Options that change no number, and those that came later, where they have their defaults.
_LEFT_OUT = re.compile(r", (reversible=\w+|start='identity')")


def in_words(bijection: Any) -> str:
    """A bijection as a checkpoint tells it: the same words as in files of before."""
    return _LEFT_OUT.sub("", repr(bijection))


def base_in_words(base: Any, arrays: Iterable[Any]) -> list[Any] | None:
    """A base distribution as a checkpoint tells it: its kinds, from the outside in, and the digests of its arrays."""
    if base is None:
        return None
    kinds, part = [], base
    while part is not None:
        kinds.append(type(part).__name__)
        part = getattr(part, "base_dist", None)
    return [*kinds, *map(digest, arrays)]


def read_checkpoint(owner, path, kind="checkpoint", entries=ENTRIES, parts=("now", "best", "state")):
    """What a checkpoint holds: its configuration, and its parts, such as weights, best weights, optimiser's state."""
    config, arrays = read_file(path, "copy it again, or delete it to start anew")
    if not config["kind"].startswith("checkpoint"):
        raise ValueError(f"{path} holds a {config['kind']}, not a checkpoint of {owner}; name another file")
    fixed = config["fixed"] if isinstance(config.get("fixed"), dict) else {}
    # Of the two with one kind only densities have a flow.
    writer = "fit" if config["kind"] != "checkpoint" else "fit_density" if "flow" in fixed else "fit_vae"
    if config["kind"] != kind or (writer != owner and fixed):
        raise ValueError(
            f"{path} holds a checkpoint of {writer}, not one of {owner}; name another file, or delete it to start anew"
        )
    check_entries(f"{path}: its metadata", config, entries)
    found: dict[str, dict[str, np.ndarray]] = {part: {} for part in parts}
    for name, array in arrays.items():
        part, _, rest = name.partition("/")
        if part not in found:
            raise ValueError(f"{path} holds the array {name!r}, which is none of a checkpoint; name another file")
        found[part][rest] = array
    return config, *found.values()


def changes(fixed: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The names of what is not as a checkpoint tells it."""
    told = json.loads(json.dumps(fixed)).items()
    return [name for name, value in told if found.get(name) != value and (name in found or name not in _LATER)]


def is_near(numbers: list[float], found: Any) -> bool:
    """Whether a checkpoint tells these numbers, up to rounding."""
    try:
        return np.allclose(numbers, found, rtol=1e-3, atol=1e-3, equal_nan=True)
    except (TypeError, ValueError):
        return False


def shapes_of(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What of weights must be the same."""
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


def other_training(path: Any, changed: list[str]) -> ValueError:
    """What to raise where these things are not as a checkpoint tells them."""
    advice = ""
    if "num_epochs" in changed:
        advice = (
            ". The learning rate falls over num_epochs: give the same number or, to train the result on, fit it in a "
            "new call without this checkpoint"
        )
    return ValueError(
        f"{path} is a checkpoint of another training, with other {', '.join(changed)}; name another file, or delete it "
        f"to start anew{advice}"
    )


def check_same(path, fixed, found, weights, saved_weights):
    """Raise ValueError if the checkpoint is of another training."""
    changed = changes(fixed, found) + ["networks and flows"] * (shapes_of(weights) != shapes_of(saved_weights))
    if changed:
        raise other_training(path, changed)
