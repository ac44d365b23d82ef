"""Images from files."""

import gzip
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from flowppl.images import load_images


def test_images_from_files(tmp_path):
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.savez(tmp_path / "a.npz", images=images)
    header = b"\x00\x00\x08\x03" + np.array([2, 3, 4], ">i4").tobytes()
    (tmp_path / "b").write_bytes(header + images.tobytes())
    (tmp_path / "c.gz").write_bytes(gzip.compress(header + images.tobytes()))
    for name in ("a.npz", "b", "c.gz"):
        np.testing.assert_array_equal(load_images(tmp_path / name), images)
    (tmp_path / "cut").write_bytes(header + images.tobytes()[:-1])
    (tmp_path / "other").write_bytes(b"GIF89a")
    np.savez(tmp_path / "d.npz", pictures=images)
    np.savez(tmp_path / "e.npz", images=images / 2)
    for name, message in {
        "cut": "not whole: .* 24 values, but 23 are there",
        "other": "neither an .npz file nor",
        "d.npz": "no array 'images'; it has pictures",
        "e.npz": "images must be bytes of shape .*, got float64",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_images(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_images(tmp_path / "none")
    (tmp_path / "f.gz").write_bytes((tmp_path / "c.gz").read_bytes()[:-12])
    (tmp_path / "h.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-30])
    damaged = bytearray((tmp_path / "a.npz").read_bytes())
    damaged[damaged.index(images.tobytes())] += 1
    (tmp_path / "g.npz").write_bytes(damaged)
    for name in ("f.gz", "g.npz", "h.npz"):
        with pytest.raises(ValueError, match="is not whole"):
            load_images(tmp_path / name)
    (tmp_path / "head").write_bytes(header[:10])
    with pytest.raises(ValueError, match="nor a file of bytes in MNIST's format"):
        load_images(tmp_path / "head")
    assert load_images(tmp_path / "b").flags.writeable


def test_files_that_claim_what_they_do_not_have(tmp_path):
    """Objects in the place of numbers, negative lengths, and a length beyond any memory."""
    np.savez(tmp_path / "a.npz", images=np.array([None, 1], dtype=object))
    (tmp_path / "b").write_bytes(b"\x00\x00\x08\x03" + np.array([-2, -3, 4], ">i4").tobytes() + bytes(24))
    np.savez(tmp_path / "c.npz", images=np.zeros((2, 3, 4), np.uint8))
    with zipfile.ZipFile(tmp_path / "c.npz") as archive:
        header = archive.read("images.npy")
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr(
            "images.npy", header.replace(b"(2, 3, 4), }" + b" " * 15, b"(1000000, 10000, 10000), }" + b" ")
        )
    for name in ("a.npz", "b", "c.npz"):
        with pytest.raises(ValueError, match=f"{name} is not whole"):
            load_images(tmp_path / name)


def test_labels_and_colours(tmp_path, rng):
    images, labels = rng.integers(256, size=(2, 3, 4, 5), dtype=np.uint8), np.array([7, 1])
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    np.savez(tmp_path / "b.npz", images=np.moveaxis(images, 1, -1), labels=labels.astype(np.uint8))
    for name in ("a.npz", "b.npz"):
        found, numbers = load_images(tmp_path / name, labels=True)
        np.testing.assert_array_equal(found, images)
        np.testing.assert_array_equal(numbers, labels)
        assert numbers.dtype == np.int64
    np.savez(tmp_path / "c.npz", images=images[:, :1])
    assert load_images(tmp_path / "c.npz").shape == (2, 4, 5)
    header = b"\x00\x00\x08"
    for prefix in ("train-", "t10k-"):
        shape = np.array([2, 4, 5], ">i4").tobytes()
        (tmp_path / f"{prefix}images-idx3-ubyte").write_bytes(header + b"\x03" + shape + images[:, 0].tobytes())
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(header + b"\x01" + np.array([2], ">i4").tobytes() + b"\x07\x01")
    found, numbers = load_images(tmp_path / "train-images-idx3-ubyte", labels=True)
    assert numbers.tolist() == [7, 1]
    assert found.shape == (2, 4, 5)
    with pytest.raises(FileNotFoundError, match=r"labels-idx1 .* there is no .*t10k-labels-idx1-ubyte"):
        load_images(tmp_path / "t10k-images-idx3-ubyte", labels=True)
    np.savez(tmp_path / "d.npz", images=images, labels=labels[:1])
    np.savez(tmp_path / "e.npz", images=images, labels=labels / 2)
    np.savez(tmp_path / "f.npz", images=images[None])
    for name, message in {
        "c.npz": "has no labels; call load_images without",
        "d.npz": r"one integer for each of the 2 images, got int64 of shape \(1,\)",
        "e.npz": "one integer .* got float64",
        "f.npz": r"\(n, 3, height, width\), got uint8 of shape \(1, 2, 3, 4, 5\)",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_images(tmp_path / name, labels=True)


def test_files_of_cifar(tmp_path, rng):
    images = rng.integers(256, size=(4, 3, 32, 32), dtype=np.uint8)
    rows = images.reshape(4, -1)
    python, binary = tmp_path / "cifar-10-batches-py", tmp_path / "cifar-100-binary"
    python.mkdir(), binary.mkdir()
    for i in (1, 2):
        part = slice(2 * i - 2, 2 * i)
        batch = {b"data": rows[part], b"labels": [i, 9], b"filenames": ["a", "b"]}
        (python / f"data_batch_{i}").write_bytes(pickle.dumps(batch, protocol=2))
    batch = {"data": rows[:1], "fine_labels": [3], "coarse_labels": [0]}
    (python / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    bytes_of = np.concatenate([np.array([[0, 5], [1, 6], [0, 99], [1, 8]], np.uint8), rows], axis=1).tobytes()
    (binary / "train.bin").write_bytes(bytes_of)
    (tmp_path / "ten.bin").write_bytes(b"\x04" + rows[0].tobytes())
    for path, labels in {
        python: [1, 9, 2, 9],
        python / "test_batch": [3],
        binary: [5, 6, 99, 8],
        tmp_path / "ten.bin": [4],
    }.items():
        found, numbers = load_images(path, labels=True)
        np.testing.assert_array_equal(found, images[: len(labels)])
        assert numbers.tolist() == labels
        np.testing.assert_array_equal(load_images(path), found)
    (tmp_path / "cut.bin").write_bytes(bytes_of[:-1])
    (tmp_path / "cut").write_bytes((python / "data_batch_1").read_bytes()[:-50])
    (tmp_path / "other").write_bytes(pickle.dumps({"data": rows[:, :10]}, protocol=2))
    (tmp_path / "list").write_bytes(pickle.dumps([1, 2]))
    (tmp_path / "harm").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.")
    for name, message in {
        "cut.bin": "not whole, or no file of CIFAR: 12295 bytes",
        "cut": "not whole, or no file of CIFAR",
        "other": "no array 'data' of 3072 bytes for each image",
        "list": "no array 'data'",
        "harm": "it asks for os.system, which files of CIFAR do not",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_images(tmp_path / name)


def test_folders_of_pictures(tmp_path, rng):
    gray, colours = (rng.integers(256, size=shape, dtype=np.uint8) for shape in ((3, 4, 5), (3, 4, 5, 3)))
    for name, images in (("gray", gray), ("colours", colours), ("classes", colours)):
        for i, image in enumerate(images):
            file = tmp_path / name / (("train", "a")[i // 2] if name == "classes" else "") / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    np.testing.assert_array_equal(load_images(tmp_path / "gray"), gray)
    np.testing.assert_array_equal(load_images(tmp_path / "colours"), np.moveaxis(colours, -1, 1))
    found, labels = load_images(tmp_path / "classes", labels=True)
    np.testing.assert_array_equal(found, np.moveaxis(colours, -1, 1)[[2, 0, 1]])
    assert labels.tolist() == [0, 1, 1]
    Image.fromarray(gray[0]).save(tmp_path / "colours" / "3.png")  # gray among colours
    np.testing.assert_array_equal(load_images(tmp_path / "colours")[3], np.stack([gray[0]] * 3))
    clear = np.concatenate([colours[0], np.zeros((4, 5, 1), np.uint8)], -1)
    opaque = np.concatenate([colours[0], np.full((4, 5, 1), 255, np.uint8)], -1)
    for name, image in {
        "size": gray[0, :3],
        "clear": clear,
        "deep": gray[0].astype(np.uint16),
        "opaque": opaque,
    }.items():
        (tmp_path / name).mkdir()
        Image.fromarray(gray[0]).save(tmp_path / name / "0.png")
        Image.fromarray(image).save(tmp_path / name / "1.png")
    np.testing.assert_array_equal(load_images(tmp_path / "opaque")[1], np.moveaxis(colours[0], -1, 0))
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "0.png").write_bytes((tmp_path / "gray" / "0.png").read_bytes()[:60])
    for name, message in {
        "size": "0.png has 4 x 5 pixels and 1.png 3 x 5; make them equal",
        "clear": "1.png has transparent pixels",
        "deep": "1.png has pixels of mode I;16, not bytes",
        "empty": "has no pictures .* and is no folder of CIFAR",
        "cut": "0.png is not whole, or no picture",
        "gray/0.png": "is one picture; give the folder",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_images(tmp_path / name)
    with pytest.raises(ValueError, match="has no labels"):
        load_images(tmp_path / "gray", labels=True)


def test_pictures_without_pillow(tmp_path):
    (tmp_path / "0.png").write_bytes(b"")
    code = (
        f"import sys; sys.modules['PIL'] = None; from flowppl.images import load_images; load_images({str(tmp_path)!r})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)
    assert "ImportError: load_images: pictures are read by Pillow; pip install pillow" in result.stderr
