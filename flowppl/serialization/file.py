"""The file itself: how arrays and metadata become bytes, how those are judged, and how they come onto the disk."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import pathlib
import stat
import uuid
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import safetensors

from flowppl.version import __version__

try:
    import fcntl
except ImportError:  # Windows, where the leavings of killed writers stay
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
HEAD = b'{"__metadata__": {"sha256": "'
NO_DIGEST = "0" * 64

# NumPy has no bfloat16: its bits, under a name. Adapters make it their own type.
BFLOAT16 = np.dtype([("bfloat16", "<u2")])
DTYPES: dict[str, Any] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": BFLOAT16, "BOOL": "?"} | {
    f"{kind.upper()}{8 * size}": f"<{kind}{size}" for kind in "iu" for size in (8, 4, 2, 1)
}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}

Entries = Mapping[str, tuple[type, ...]]  # of a JSON object: their names, and the types of their values
WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def check_entries(what: str, found: Any, entries: Entries) -> None:
    """Raise ValueError unless ``found`` is a dict with these entries, each of one of its types, and no others."""
    if not isinstance(found, dict):
        raise ValueError(f"{what} must be an object with the entries {', '.join(entries)}, got {_shown(found)}")
    missing, unknown = [key for key in entries if key not in found], [key for key in found if key not in entries]
    if missing or unknown:
        raise ValueError(f"{what} must have the entries {', '.join(entries)}: missing {missing}, unknown {unknown}")
    for name, types in entries.items():
        if type(found[name]) not in types:
            expected = " or ".join(WORDS[kind] for kind in types)
            raise ValueError(f"{what}: {name!r} must be {expected}, got {_shown(found[name])}")


def _check_path(path):
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"a file is named by a str or a path, such as 'guide.flow', got {path!r:.80}")


def _shown(value):
    """A value of any size in a few words."""
    return WORDS[type(value)] if isinstance(value, (list, dict)) else repr(value)[:80]


def read_file(
    path: str | os.PathLike[str], advice: str = "copy or save it again"
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The configuration and the arrays of a file, which is whole and of a known format.

    Of the entries of the configuration only ``format``, ``flowppl`` and ``kind`` are checked.

    Args:
        path: where it is.
        advice: what to do with a file that is damaged.
    """
    _check_path(path)
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "cannot load a folder; give the name of a file in it", os.fspath(path))
    if not stat.S_ISREG(mode):
        raise ValueError(f"cannot load {path}: it is a device or a pipe, not a file")
    content = pathlib.Path(path).read_bytes()
    try:
        entries = safetensors.deserialize(content)
    except safetensors.SafetensorError as error:
        if content.startswith((b"PK\x03\x04", b"\x80\x02\x8a", b"\x80\x04\x95", b"\x80\x05\x95")):  # zip, pickle
            advice += "; what torch.save or numpy.savez wrote is read by torch.load or numpy.load"
        reason = str(error) if content else "it is empty"
        raise ValueError(f"{path} is not a whole safetensors file ({reason}); {advice}") from error
    end = 8 + int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8:end]).get("__metadata__") or {}
    if "flowppl" not in metadata:
        raise ValueError(f"{path} was not written by flowppl: it has no entry 'flowppl' in its metadata")
    if metadata.keys() != {"flowppl"} and not _is_undamaged(content):  # early versions wrote no digest
        raise ValueError(
            f"{path} is damaged: its bytes are not those that were written, of which it holds the digest; {advice}"
        )
    arrays = {}
    for name, entry in entries:
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{path}: the array {name!r} has the type {entry['dtype']}, which flowppl does not write")
        arrays[name] = np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return _read_config(path, metadata["flowppl"], advice), arrays


def _read_config(path, text, advice):
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its metadata cannot be read ({error}); {advice}") from error
    heads = {"format": (int,), "flowppl": (str,), "kind": (str,)}
    known = {name: value for name, value in config.items() if name in heads} if isinstance(config, dict) else config
    check_entries(f"{path}: its metadata", known, heads)
    if config["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {config['format']} and was written by flowppl {config['flowppl']}, but this flowppl "
            f"{__version__} reads format {FORMAT}; install that version or a later one"
        )
    return config


def check_target(path: str | os.PathLike[str]) -> pathlib.Path:
    """Where a file of this name is to be written, which is where links lead; raise an error if it cannot be there."""
    _check_path(path)
    target = pathlib.Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "cannot save to a folder; give the name of a file in it", os.fspath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot save to {path}: there is no folder {target.parent}; make it first")
    if target.exists() and not target.is_file():
        raise ValueError(f"cannot save to {path}: it is a device or a pipe, not a file; give another name")
    return target


def write_file(path: str | os.PathLike[str], config: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write all of a file or nothing."""
    target = check_target(path)
    content = _pack(json.dumps({"format": FORMAT, "flowppl": __version__} | config), arrays)
    _remove_leavings(target)
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with _create(temporary, target.stat() if target.exists() else None) as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows moves no open file
            os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            reason = f"cannot save to {path}: {error.strerror or error}; {_advice(error.errno)}; a file that was there "
            reason += "is as it was"
            raise OSError(error.errno or errno.EIO, reason) from error
        raise


def _advice(code: int | None) -> str:
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "make room, or name a file on another disk"
    if code in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "name a file in a folder in which you may write, or ask for the right to"
    return "name a file elsewhere"


def _create(path: pathlib.Path, old: os.stat_result | None) -> BinaryIO:
    """A new file with the owner and the mode of the old one, locked for as long as it is open."""
    mode = 0o666 if old is None else stat.S_IMODE(old.st_mode)
    while True:
        file = open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115
        if fcntl is not None:
            with contextlib.suppress(OSError):  # not every file system has locks
                fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():
            break
        file.close()  # another writer took it for a leaving before it was locked
    if old is not None and hasattr(os, "fchmod"):
        with contextlib.suppress(OSError):  # only root gives files away
            os.fchown(file.fileno(), old.st_uid, old.st_gid)
        os.fchmod(file.fileno(), mode)
    return file


def _remove_leavings(path: pathlib.Path) -> None:
    """Remove what killed writers of this file left. Those that are at work hold a lock."""
    if fcntl is None:
        return
    for leaving in path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * 32}.tmp"):
        with contextlib.suppress(OSError), open(leaving, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leaving.unlink()


def _pack(text: str, arrays: dict[str, np.ndarray]) -> list[bytes]:
    """The parts of a file: the length of its header, the header, and the arrays, those of the widest numbers first."""
    header: dict[str, Any] = {"__metadata__": {"sha256": NO_DIGEST, "flowppl": text}}
    data, start = [], 0
    arrays = {name: _with_a_name(name, array) for name, array in arrays.items()}
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])):
        data.append(array.tobytes())
        offsets = [start, start + array.nbytes]
        header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        start += array.nbytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    length = len(head).to_bytes(8, "little")
    digest = hashlib.sha256(length + head)
    for part in data:
        digest.update(part)
    first = len(HEAD)
    return [length, head[:first], digest.hexdigest().encode(), head[first + len(NO_DIGEST) :], *data]


def _with_a_name(name, array):
    """An array of a type that the file knows, in little-endian order."""
    if array.dtype.name == "bfloat16":  # that of ml_dtypes
        array = np.asarray(array, order="C").view(BFLOAT16)
    dtype = array.dtype.newbyteorder("<")
    if dtype not in NAMES:
        raise TypeError(f"cannot save {name}, an array of {array.dtype}; make it float64, float32, float16 or bfloat16")
    return array.astype(dtype)


def _is_undamaged(content: bytes) -> bool:
    """Whether the digest in a file is that of the file with zeros in the place of the digest."""
    first = 8 + len(HEAD)
    last = first + len(NO_DIGEST)
    digest = hashlib.sha256(content[:first] + NO_DIGEST.encode())
    digest.update(memoryview(content)[last:])
    return content[8:first] == HEAD and content[first:last] == digest.hexdigest().encode()
