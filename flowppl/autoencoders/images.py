"""Images for examples: scikit-learn's digits, or a file of one's own."""

from __future__ import annotations

import gzip
import math
import os
import pathlib
import zipfile
import zlib

import numpy as np


def load_images(path: str | os.PathLike[str] | None = None) -> np.ndarray:
    """Gray images as integers from 0.

    Args:
        path: an ``.npz`` file with an array ``images``, or MNIST's own file of images (IDX), packed by gzip or not;
            ``None`` for the 1,797 digits of scikit-learn, of 8 x 8 pixels with 17 levels.

    Returns:
        An array of bytes, of shape ``(n, height, width)``.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: for the digits without scikit-learn.
        ValueError: if the file is neither of the two, or not whole.

    Example:
        >>> from flowppl.images import load_images
        >>> load_images().shape
        (1797, 8, 8)
    """
    if path is None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError("load_images: the digits are scikit-learn's; pip install scikit-learn") from error
        return load_digits().images.astype(np.uint8)
    path = pathlib.Path(path)
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    images = _read_npz(path) if is_zip else _read_idx(path, _unpacked(path))
    if images.ndim != 3 or images.dtype != np.uint8:
        raise ValueError(
            f"{path}: images must be bytes of shape (n, height, width), got {images.dtype} of shape {images.shape}"
        )
    return images


def _read_npz(path):
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            names = list(arrays)
            if "images" in names:
                return arrays["images"]
    except (zipfile.BadZipFile, zlib.error, EOFError, MemoryError, ValueError) as error:
        raise ValueError(f"{path} is not whole ({error}); copy it again") from error
    raise ValueError(f"{path} has no array 'images'; it has {', '.join(names) or 'none'}")


def _unpacked(path):
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is not whole ({error}); copy it again") from error


def _read_idx(path, content):
    """Zero, zero, 8 for bytes, the number of axes, each axis as four bytes, and the values."""
    num_axes = content[3] if content[:3] == b"\x00\x00\x08" else 0
    if not num_axes or len(content) < 4 + 4 * num_axes:
        raise ValueError(f"{path} is neither an .npz file nor a file of bytes in MNIST's format (IDX)")
    shape = tuple(np.frombuffer(content, ">i4", num_axes, offset=4).tolist())
    values = content[4 + 4 * num_axes :]
    if len(values) != math.prod(shape) or min(shape) < 0:
        raise ValueError(f"{path} is not whole: {shape} are {math.prod(shape)} values, but {len(values)} are there")
    return np.frombuffer(values, np.uint8).reshape(shape).copy()  # one that may be written to
