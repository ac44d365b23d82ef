"""Images from files."""

import gzip
import zipfile

import numpy as np
import pytest

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
