"""Images for examples: scikit-learn's digits, or files of one's own."""

from __future__ import annotations

import gzip
import io
import math
import os
import pathlib
import pickle
import re
import zipfile
import zlib
from typing import Any, Literal, overload

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]
Read = tuple[np.ndarray, np.ndarray | None]
PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
CIFAR_PIXELS = 3 * 32 * 32
ARRAYS = (("numpy", "ndarray"), ("numpy", "dtype"), ("numpy._core.multiarray", "_reconstruct"))  # what makes one


@overload
def load_images(path: str | os.PathLike[str] | None = None, *, labels: Literal[False] = False) -> np.ndarray: ...
@overload
def load_images(path: str | os.PathLike[str] | None = None, *, labels: Literal[True]) -> Pair: ...
def load_images(path: str | os.PathLike[str] | None = None, *, labels: bool = False) -> np.ndarray | Pair:
    """Gray or colour images as integers from 0, and their labels.

    Nothing is downloaded. What a file is is found from its content:

    - an ``.npz`` file with an array ``images``, and of labels ``labels``. Colours may be its second axis or its last;
    - MNIST's own files (IDX), packed by gzip or not. The labels are in the file of the same name with ``labels-idx1``
      in the place of ``images-idx3``;
    - a file of CIFAR-10 or CIFAR-100, of the versions for Python or in binary (``.bin``), or the folder of either,
      from which the training set is read. The labels of CIFAR-100 are the fine ones;
    - a folder of PNG, JPEG or BMP files of one size, read by Pillow in the order of their names. Where the files
      are in folders in it, a label is the number of the folder, counted in the order of the names.

    Args:
        path: the file or the folder; ``None`` for the 1,797 digits of scikit-learn, of 8 x 8 pixels with 17 levels.
        labels: whether to give labels too.

    Returns:
        An array of bytes, of shape ``(n, height, width)``, or ``(n, 3, height, width)`` for colours. With ``labels`` a
        pair of it and an array of n integers.

    Raises:
        FileNotFoundError: if there is no such file, or none with labels.
        ImportError: for the digits without scikit-learn, and for a folder of pictures without Pillow.
        ValueError: if the file is none of these, or not whole; if pictures differ in size, are transparent or have more
            than 256 levels; if there are no labels, or not one for each image.

    Example:
        >>> from flowppl.images import load_images
        >>> images, labels = load_images(labels=True)
        >>> images.shape, labels.shape
        ((1797, 8, 8), (1797,))
    """
    if path is None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError("load_images: the digits are scikit-learn's; pip install scikit-learn") from error
        digits = load_digits()
        images, found = digits.images.astype(np.uint8), digits.target
    else:
        path = pathlib.Path(path)
        images, found = _read_folder(path) if path.is_dir() else _read_file(path, labels)
        images = _channels_first(images)
        if images.ndim not in (3, 4) or images.dtype != np.uint8:
            raise ValueError(
                f"{path}: images must be bytes of shape (n, height, width) or (n, 3, height, width), got "
                f"{images.dtype} of shape {images.shape}"
            )
    if not labels:
        return images
    if found is None:
        raise ValueError(f"{path} has no labels; call load_images without labels=True")
    if found.shape != images.shape[:1] or found.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: labels must be one integer for each of the {len(images)} images, got {found.dtype} of shape "
            f"{found.shape}"
        )
    return images, found.astype(np.int64)


def _channels_first(images):
    if images.ndim == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        images = np.moveaxis(images, -1, 1)
    return np.ascontiguousarray(images[:, 0] if images.ndim == 4 and images.shape[1] == 1 else images)


def _read_file(path, labels) -> Read:
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] == b"PK":
        return _read_npz(path)
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        return _read_pickle(path)
    if path.suffix == ".bin":
        return _read_cifar(path)
    if path.suffix.lower() in PICTURES:
        raise ValueError(f"{path} is one picture; give the folder of all")
    images = _read_idx(path, _unpacked(path))
    if not labels:
        return images, None
    other = path.with_name(re.sub(r"images([-.])idx3", r"labels\1idx1", path.name))
    if other == path or not other.exists():
        raise FileNotFoundError(
            f"load_images: the labels of {path} are looked for in a file of the same name with labels-idx1 in the "
            f"place of images-idx3{'' if other == path else f', but there is no {other}'}"
        )
    return images, _read_idx(other, _unpacked(other))


def _read_npz(path) -> Read:
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            names = list(arrays)
            if "images" in names:
                return arrays["images"], arrays["labels"] if "labels" in names else None
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


def _read_cifar(path) -> Read:
    """Records of one byte for the label, of CIFAR-100 two, of which the second is the fine one, and of the pixels."""
    content = path.read_bytes()
    fits = [num for num in (1, 2) if content and len(content) % (CIFAR_PIXELS + num) == 0]
    if not fits:
        raise ValueError(
            f"{path} is not whole, or no file of CIFAR: {len(content)} bytes are no records of {CIFAR_PIXELS} pixels "
            "with one label or two"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, CIFAR_PIXELS + fits[0])
    return records[:, fits[0] :].reshape(-1, 3, 32, 32), records[:, fits[0] - 1]


class _Unpickler(pickle.Unpickler):
    """Only arrays: what else a pickle may call could do anything."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")
        if (module, name) in ARRAYS:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which files of CIFAR do not")


def _read_pickle(path) -> Read:
    """A dict with ``data``, one row of numbers for each image, and ``labels`` or ``fine_labels``."""
    try:
        batch = _Unpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{path} is not whole, or no file of CIFAR ({error}); copy it again") from error
    batch = (
        {key.decode() if isinstance(key, bytes) else key: v for key, v in batch.items()}
        if isinstance(batch, dict)
        else {}
    )
    data = batch.get("data")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (CIFAR_PIXELS,):
        raise ValueError(f"{path} is no file of CIFAR: it has no array 'data' of {CIFAR_PIXELS} bytes for each image")
    labels = batch.get("fine_labels", batch.get("labels"))
    return data.reshape(-1, 3, 32, 32), None if labels is None else np.asarray(labels)


def _read_folder(path) -> Read:
    named = re.compile(r"data_batch_\d+(\.bin)?|train(\.bin)?")
    names = sorted(each.name for each in path.iterdir() if named.fullmatch(each.name) and each.is_file())
    if names:
        parts = [_read_file(path / name, labels=True) for name in names]
        images, labels = zip(*parts, strict=True)
        return np.concatenate(images), None if any(each is None for each in labels) else np.concatenate(labels)
    files = sorted(each for each in path.rglob("*") if each.suffix.lower() in PICTURES)
    if not files:
        raise ValueError(f"{path} has no pictures ({', '.join(PICTURES)}), and is no folder of CIFAR")
    folders = sorted({file.parent for file in files})
    images = _read_pictures(files)
    return images, None if path in folders else np.array([folders.index(file.parent) for file in files])


def _read_pictures(files):
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("load_images: pictures are read by Pillow; pip install pillow") from error
    images, has_colours = [], False
    for file in files:
        try:
            with Image.open(file) as picture:
                picture.load()
                images.append(_as_rgb(file, picture))
                has_colours |= picture.mode not in ("1", "L", "LA")
        except OSError as error:
            raise ValueError(f"{file} is not whole, or no picture ({error}); copy it again") from error
        if images[-1].shape != images[0].shape:
            (height, width), (first_height, first_width) = images[-1].shape[1:], images[0].shape[1:]
            raise ValueError(
                f"load_images: pictures must have one size, but {files[0].name} has {first_height} x {first_width} "
                f"pixels and {file.name} {height} x {width}; make them equal before"
            )
    stacked = np.stack(images)
    return stacked if has_colours else stacked[:, 0]


def _as_rgb(file, picture):
    """The colours of a picture, bytes of shape (3, height, width)."""
    if picture.mode not in ("1", "L", "P", "RGB", "RGBA", "LA"):
        raise ValueError(f"{file} has pixels of mode {picture.mode}, not bytes of gray or colours; convert it before")
    may_be_clear = picture.mode in ("RGBA", "LA") or "transparency" in picture.info
    if may_be_clear and picture.convert("RGBA").getextrema()[3] != (255, 255):
        raise ValueError(f"{file} has transparent pixels; put it on a background before")
    return np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0)
