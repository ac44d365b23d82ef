"""Files on the disk: whole or not there, and refused in words when they are damaged, or of another kind."""

import concurrent.futures
import contextlib
import errno
import fcntl
import functools
import json
import os
import pathlib
import resource
import stat
import subprocess
import sys
import tempfile
import time
import tracemalloc

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
from autoencoders import NumPyro, both, small, stripes
from hypothesis import strategies

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl.serialization import BFLOAT16, load, read_file, save, write_file

OLD = pathlib.Path(__file__).with_name("files") / "0.1"
MAKERS = {
    "pyro": lambda bijection: fpp.Flow(bijection),
    "numpyro": lambda bijection: fnp.Flow.init(jax.random.key(0), bijection),
}
each_language = pytest.mark.parametrize("language", MAKERS)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "flow.safetensors"


def saved(path, language="pyro", bijection=None):
    """The bytes of a file with a small flow."""
    save(path, MAKERS[language](bijection or fp.Autoregressive(3, hidden_dims=8)))
    return path.read_bytes()


def without_digest(path, config, arrays):
    """Write a file as early versions did."""
    text = config if isinstance(config, str) else json.dumps(config)
    safetensors.numpy.save_file(arrays, path, {"flowppl": text})


def test_the_library_reads_the_same(path):
    saved(path)
    config, arrays = read_file(path)
    with safetensors.safe_open(path, "numpy") as file:
        assert json.loads(file.metadata()["flowppl"]) == config
        assert set(file.keys()) == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.get_tensor(name), array, strict=True)


def test_damage_anywhere_is_told(path):
    content = saved(path, bijection=fp.Planar(2))
    told = r"is damaged|is not a whole safetensors file|was not written by flowppl"
    for i, byte in enumerate(content):
        path.write_bytes(content[:i] + bytes([byte ^ 1 << i % 8]) + content[i + 1 :])
        with pytest.raises(ValueError, match=told):
            load(path)
    for first in range(0, len(content) - 64, 50):
        path.write_bytes(content[:first] + bytes(64) + content[first + 64 :])
        with pytest.raises(ValueError, match=told):
            load(path)
    for damaged in (b"", b"nonsense", content[: len(content) // 2], content[:-1], content + b"\0", content + content):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is not a whole safetensors file .* copy or save it again"):
            load(path)


@strategies.composite
def damaged_bytes(draw, content):
    """A file that is cut, goes on, has bits turned, zeros, blocks moved or doubled, or other bytes."""
    first = draw(strategies.integers(0, len(content)))
    last = draw(strategies.integers(first, min(first + 200, len(content))))
    some = content[first:last]
    elsewhere = draw(strategies.integers(0, len(content)))
    bit = 1 << draw(strategies.integers(0, 7))
    return draw(
        strategies.sampled_from(
            [
                content[:first],
                content + some + b"\0",
                content[:first] + bytes([byte ^ bit for byte in some[:1]]) + content[first + 1 :],
                content[:first] + bytes(len(some)) + content[last:],
                content[:first] + some + content[first:],
                content[:elsewhere] + some + content[elsewhere + len(some) :],
                content[:first] + draw(strategies.binary(max_size=200)) + content[last:],
                draw(strategies.integers(0, 2**64 - 1)).to_bytes(8, "little") + content[8:],  # the length of the header
            ]
        )
    )


@functools.cache
def some_file(language):
    with tempfile.TemporaryDirectory() as folder:
        return saved(pathlib.Path(folder) / "flow", language)


def tell_damage(language, digest, data, path):
    content = some_file(language) if digest else (OLD / f"{language}_fit.safetensors").read_bytes()
    damaged = data.draw(damaged_bytes(content))
    path.write_bytes(damaged)
    start = time.process_time()
    if damaged == content:
        load(path)
    elif digest:
        with pytest.raises(ValueError, match=str(path)):
            load(path)
    else:
        with contextlib.suppress(ValueError):  # nobody knows; but what cannot be read raises no other error
            load(path)
    assert not digest or time.process_time() - start < 1


files = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.function_scoped_fixture]}
each_kind = pytest.mark.parametrize("digest", [True, False])


@each_kind
@each_language
@hypothesis.settings(max_examples=60, **files)
@hypothesis.given(data=strategies.data())
def test_a_damaged_file_never_gives_other_numbers(language, digest, data, path):
    tell_damage(language, digest, data, path)


@pytest.mark.stress
@each_kind
@each_language
@hypothesis.settings(max_examples=5000, **files)
@hypothesis.given(data=strategies.data())
def test_thousands_of_damaged_files_never_give_other_numbers(language, digest, data, path):
    tell_damage(language, digest, data, path)


SOME = strategies.one_of(
    strategies.none(),
    strategies.booleans(),
    strategies.integers(-2, 4),
    strategies.sampled_from([10**9, 10**18, -(10**12), 10**400, 1e308, float("nan"), float("inf"), "", "a", [], {}]),
    strategies.sampled_from(["Planar", "MLP", "Chain", "Normal", "flow", "pixelcnn", [[]], {"type": "Planar"}]),
)


def tell_description(language, data, path):
    """Another value, or none, in any place of the description, under a digest that is right."""
    config, arrays = read_file(OLD / f"{language}_{data.draw(strategies.sampled_from(['flow', 'fit']))}.safetensors")
    place = config
    while True:
        key = data.draw(strategies.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(strategies.integers(0, 3)) == 0:
            break
        place = place[key]
    if data.draw(strategies.booleans()):
        place[key] = data.draw(SOME)
    else:
        del place[key]
    write_file(path, config, arrays)
    start = time.process_time()
    with contextlib.suppress(ValueError):
        load(path)  # a value that is a right one too, such as another number of an array, is no damage
    assert time.process_time() - start < 1


@each_language
@hypothesis.settings(max_examples=60, **files)
@hypothesis.given(data=strategies.data())
def test_any_description_is_loaded_or_refused_in_words(language, data, path):
    tell_description(language, data, path)


@pytest.mark.stress
@each_language
@hypothesis.settings(max_examples=5000, **files)
@hypothesis.given(data=strategies.data())
def test_thousands_of_descriptions_are_loaded_or_refused_in_words(language, data, path):
    tell_description(language, data, path)


def nested(depth):
    layer = {"type": "Planar", "dim": 2, "num_flows": 1}
    for _ in range(depth):
        layer = {"type": "Invert", "bijection": layer}
    return layer


CHANGES = [
    (lambda c, a: c.update(format=2, flowppl="9.9"), r"format 2 .* flowppl 9.9, .* reads format 1; install"),
    (lambda c, a: c.update(format="1"), "'format' must be an integer, got '1'"),
    (lambda c, a: c.update(format=True), "'format' must be an integer, got True"),
    (lambda c, a: c.pop("kind"), r"must have the entries format, .*: missing \['kind'\]"),
    (lambda c, a: c.pop("backend"), r"missing \['backend'\], unknown \[\]"),
    (lambda c, a: c.update(colour="red"), r"unknown \['colour'\]"),
    (lambda c, a: c.update(kind="plan"), "holds a plan, which flowppl.load does not read"),
    (lambda c, a: c.update(kind="fit"), "has entries for a flow alone, but is of a fit"),
    (lambda c, a: c.update(kind=["flow"]), "'kind' must be a text, got a list"),
    (lambda c, a: c.update(bijection=[1]), "'bijection' must be an object, got a list"),
    (lambda c, a: c.update(base={"type": "Gamma"}), "base distribution: the type must be one of Normal, .* 'Gamma'"),
    (lambda c, a: c.update(base={"type": "Normal", "loc": 1.0}), "Normal must have the arguments loc, scale"),
    (lambda c, a: c.update(base={"type": "Normal", "loc": 1.0, "scale": "a"}), "holds what cannot be made|must all be"),
    (lambda c, a: c.update(backend="tensorflow"), "backend must be one of pyro, numpyro, got 'tensorflow'"),
    (lambda c, a: a.pop("weights.network.0.bias"), r"missing \['weights.network.0.bias'\], unexpected \[\]"),
    (lambda c, a: a.pop("weights.network.0.mask"), r"missing \['weights.network.0.mask'\], unexpected \[\]"),
    (lambda c, a: a.update(more=np.ones(2)), r"missing \[\], unexpected \['more'\]"),
    (
        lambda c, a: a.update({"weights.network.0.bias": np.ones(3)}),
        r"weights.network.0.bias must have the shape \(8,\), got \(3,\)",
    ),
    (lambda c, a: a.update({"weights.network.0.bias": np.ones(8, int)}), "must hold floating point numbers, got int64"),
    (
        lambda c, a: a.update({"weights.network.0.mask": ~a["weights.network.0.mask"]}),
        "the constant weights.network.0.mask is not the one that this flowppl",
    ),
    (lambda c, a: c["bijection"].update(type="Nonsense"), "unknown class 'Nonsense'"),
    (lambda c, a: c["bijection"].update(type="initialize"), "unknown class 'initialize'"),
    (lambda c, a: c["bijection"].update(type=["Planar"]), r"name of a class as its type, got \['Planar'\]"),
    (lambda c, a: c["bijection"].pop("dim"), "Autoregressive cannot be made of its fields: .* 'dim'"),
    (lambda c, a: c["bijection"].update(dim="3"), "Autoregressive: dim must be an integer of at least 1, got '3'"),
    (lambda c, a: c["bijection"].update(dim=-1), "dim must be an integer of at least 1, got -1"),
    (lambda c, a: c["bijection"].update(dims=3), "Autoregressive has no field 'dims'"),
    (lambda c, a: c["bijection"].update(univariate="affine"), "cannot be made of its fields"),
    (lambda c, a: c.update(bijection={"type": "Affine"}), "expected a flowppl.Bijection"),
    (lambda c, a: c.update(bijection=nested(300)), "holds what cannot be made|cannot be read|does not hold the arrays"),
]


@pytest.mark.parametrize("write", [write_file, without_digest])
@each_language
def test_a_file_that_does_not_fit_is_refused(language, write, path):
    for change, message in CHANGES:
        saved(path, language)
        config, arrays = read_file(path)
        change(config, arrays)
        write(path, config, arrays)
        with pytest.raises(ValueError, match=message):
            load(path)


@each_language
def test_a_metadata_text_that_is_none(language, path):
    saved(path, language)
    config, arrays = read_file(path)
    deep = json.dumps(config | {"bijection": 0}).replace(
        '"bijection": 0', '"bijection": ' + '{"a": ' * 3000 + "0" + "}" * 3000
    )
    for text in ("", "{", "[]", "null", "3", deep, "9" * 5000, '"\\ud800"'):
        without_digest(path, text, arrays)
        with pytest.raises(ValueError, match=r"metadata (cannot be read|must be an object)|cannot be made|name of a c"):
            load(path)


LARGE = [
    {"type": "TriangularAffine", "dim": 10**6},
    {"type": "LU", "dim": 10**6, "permutation": None},
    {"type": "Autoregressive", "dim": 10**6},
    {"type": "Autoregressive", "dim": 3, "hidden_dims": [10**9]},
    {"type": "Autoregressive", "dim": 3, "hidden_dims": 10**9},
    {"type": "Coupling", "dim": 10**9},
    {"type": "Coupling", "dim": 10**9, "network": {"type": "MLP", "in_dim": 1, "out_dim": 1}},
    {"type": "Coupling", "dim": 2, "network": {"type": "MADE", "dim": 10**6, "num_outputs": 2}},
    {"type": "Elementwise", "dim": 10**12, "univariate": {"type": "Tanh"}},
    {"type": "Elementwise", "dim": 1, "univariate": {"type": "SumOfSquares", "num_polynomials": 1, "degree": 10**6}},
    {"type": "MatrixExponential", "dim": 10**9},
    {"type": "Planar", "dim": 10**9, "num_flows": 10**9},
    {"type": "Repeat", "num": 10**15, "bijection": {"type": "TriangularAffine", "dim": 3}},
    {"type": "Householder", "dim": 3, "num_reflections": 10**12},
    {"type": "TriangularSylvester", "dim": 10**6},
    {"type": "Subspace", "dim": 10**12, "bijection": {"type": "TriangularAffine", "dim": 10**6}},
    {"type": "Conditional", "bijection": {"type": "TriangularAffine", "dim": 10**6}, "context_dim": 10**6},
    {"type": "ImageCoupling", "shape": [2, 4, 4], "num_blocks": 10**9},
    {"type": "ImageAutoregressive", "shape": [1, 4], "num_blocks": 10**9},
    {"type": "ImageCoupling", "shape": [2, 4, 4], "network": {"type": "ConvNet", "num_blocks": 10**9}},
    {"type": "Squeeze", "shape": [1, 10**9, 10**9]},
    {"type": "QR", "dim": 10**6, "start": "rotation"},
]


@each_language
def test_no_more_memory_than_the_file_has(language, path):
    saved(path, language)
    load(path)  # imports what it needs
    config, arrays = read_file(path)
    for bijection in LARGE:
        names = {f"weights.{name}": np.ones(3) for name in ("loc", "scale", "lower")}
        for held in (arrays, names):
            write_file(path, config | {"bijection": bijection}, held)
            tracemalloc.start()
            start = time.process_time()
            try:
                with pytest.raises(ValueError, match=str(path)):
                    load(path)
                assert tracemalloc.get_traced_memory()[1] < 1e6, bijection
            finally:
                tracemalloc.stop()
            assert time.process_time() - start < 0.5, bijection


def change_latent(**changes):
    return lambda c, a: c["guide"]["latents"]["0"].update(changes)


FIT_CHANGES = [
    (lambda c, a: c["guide"].pop("latents"), r"its guide must have the entries .*: missing \['latents'\]"),
    (lambda c, a: c["guide"].update(latents={}), "its latents have 0 coordinates, but its flow"),
    (change_latent(shape=[10**12]), "coordinates, but its flow maps"),
    (change_latent(shape=["a"]), "holds what cannot be made"),
    (change_latent(support={"type": "circle"}), "the support of 'z': the type must be one of real"),
    (change_latent(support={"type": "interval"}), "interval must have the arguments lower_bound, upper_bound"),
    (
        change_latent(
            support={"type": "independent", "base_constraint": {"type": "real"}, "reinterpreted_batch_ndims": -1}
        ),
        "holds what cannot be made|reinterpreted",
    ),
    (change_latent(plates=[["rows"]]), r"'z' cannot be in a plate of name, axis and size \['rows'\]"),
    (change_latent(plates=[["rows", -1, 10**9]]), "'z' cannot be in a plate"),
    (change_latent(plates=[["rows", "-1", 2]]), "'z' cannot be in a plate"),
    (lambda c, a: c["guide"]["latents"]["0"].pop("event_dim"), "a latent of its guide must have .*'event_dim'"),
    (lambda c, a: c.update(fit=3), "'fit' must be an object or null, got 3"),
    (lambda c, a: c["fit"].update(checks=[]), "not enough values"),
    (lambda c, a: c["fit"].update(checks=[{"a": 1}]), "holds what cannot be made .*'a'"),
    (lambda c, a: c["fit"].pop("stopped"), r"its fit must have the entries .*: missing \['stopped'\]"),
    (lambda c, a: a.pop("fit.losses"), r"missing \['fit.losses'\]"),
]


@each_language
@pytest.mark.parametrize("write", [write_file, without_digest])
def test_a_guide_or_fit_that_does_not_fit_is_refused(language, write, path):
    for change, message in FIT_CHANGES:
        config, arrays = read_file(OLD / f"{language}_fit.safetensors")
        change(config, arrays)
        write(path, config, arrays)
        for backend in MAKERS:
            with pytest.raises(ValueError, match=message):
                load(path, backend)


CHECKPOINT_CHANGES = [
    (lambda c, a: c.pop("seed"), r"missing \['seed'\]"),
    (lambda c, a: c.update(fixed=None), "'fixed' must be an object, got null|'fixed' must be an object, got None"),
    (lambda c, a: c.update(progress={}), "its progress must have the entries losses"),
    (lambda c, a: c["progress"].update(losses=3), "'losses' must be a list, got 3"),
    (lambda c, a: a.update(more=np.ones(1)), "holds the array 'more', which is none of a checkpoint"),
    (lambda c, a: a.pop(next(name for name in a if name.startswith("state/"))), "the state of this training"),
    (lambda c, a: a.pop(next(name for name in a if name.startswith("now/"))), "with other networks and flows"),
]


@both
def test_a_checkpoint_that_does_not_fit_is_refused(lang, path):
    options = {"batch_size": 40, "warm_up": 0, "checkpoint": path}
    lang.fit(0, small(lang), stripes(), num_epochs=1, **options)
    content, whole = path.read_bytes(), read_file(path)
    for change, message in CHECKPOINT_CHANGES:
        config, arrays = json.loads(json.dumps(whole[0])), dict(whole[1])
        change(config, arrays)
        write_file(path, config, arrays)
        with pytest.raises(ValueError, match=message):
            lang.fit(0, small(lang), stripes(), num_epochs=2, **options)
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    with pytest.raises(ValueError, match="is damaged"):
        lang.fit(0, small(lang), stripes(), num_epochs=2, **options)


def test_files_that_are_none_of_ours_are_refused(path, tmp_path):
    with pytest.raises(FileNotFoundError):
        load(path)
    with pytest.raises(IsADirectoryError, match="cannot load a folder; give the name of a file in it"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for special in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match="it is a device or a pipe, not a file"):
            load(special)
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"not a whole safetensors file .* wrote is read by torch.load"):
        load(path)
    safetensors.numpy.save_file({"a": np.ones(2)}, path)
    with pytest.raises(ValueError, match=r"was not written by flowppl: it has no entry 'flowppl'"):
        load(path)


@pytest.mark.parametrize("broken", ["os.open", "os.replace", "os.fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_failure_leaves_the_old_file_and_says_why(broken, code, path, monkeypatch):
    before = saved(path)

    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    flow = fpp.Flow(fp.Planar(2))
    monkeypatch.setattr(broken, fail)
    with pytest.raises(OSError, match=f"cannot save to {path}: {os.strerror(code)}; .* is as it was") as caught:
        save(path, flow)
    monkeypatch.undo()
    assert caught.value.errno == code
    assert os.listdir(path.parent) == [path.name]
    assert path.read_bytes() == before
    save(path, flow)
    assert load(path).bijection == fp.Planar(2)
    assert os.listdir(path.parent) == [path.name]


def test_a_full_disk_leaves_the_old_file(path):
    """In the midst of writing: here the system lets no file grow beyond a limit."""
    before = saved(path)
    flow = fpp.Flow(fp.TriangularAffine(40))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, old[1]))
    try:
        with pytest.raises(OSError, match=f"cannot save to {path}: .* is as it was"):
            save(path, flow)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert os.listdir(path.parent) == [path.name]
    assert path.read_bytes() == before


def test_of_two_writers_each_writes_all(path):
    """A reader meets the file of one or of the other, never parts of both, and nothing is left beside it."""
    contents = [{"a": np.full(20_000, float(i)), "b": np.full(3, float(i))} for i in range(2)]
    write_file(path, {"kind": "0"}, contents[0])

    def write(i):
        for _ in range(20):
            write_file(path, {"kind": str(i)}, contents[i])

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write, i) for i in range(2)]
        while not all(writer.done() for writer in writers):
            config, arrays = read_file(path)
            for name, array in arrays.items():
                np.testing.assert_array_equal(array, contents[int(config["kind"])][name])
    for writer in writers:
        writer.result()
    assert os.listdir(path.parent) == [path.name]


WRITER = """
import sys, numpy as np
from flowppl.serialization import write_file
i = 0
while True:
    i += 1
    write_file(sys.argv[1], {"kind": str(i)}, {"a": np.full(200_000, float(i)), "b": np.full(3, float(i))})
    print(i, flush=True)
"""


@pytest.mark.stress
def test_a_killed_writer_leaves_the_old_file_or_the_new_one(path, rng):
    last = 0
    for _ in range(30):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True)
        writer.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        writer.kill()
        last = int(([1, *writer.communicate()[0].split()])[-1])
        config, arrays = read_file(path)
        assert int(config["kind"]) in (last, last + 1)
        for array in arrays.values():
            np.testing.assert_array_equal(array, float(config["kind"]))
    write_file(path, config, arrays)
    assert os.listdir(path.parent) == [path.name]


def test_an_interruption_leaves_the_old_file(path, monkeypatch):
    before = saved(path)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        saved(path)
    assert os.listdir(path.parent) == [path.name]
    assert path.read_bytes() == before


def test_links_are_followed_and_modes_kept(path, tmp_path):
    real, link = tmp_path / "there" / "real", tmp_path / "link"
    real.parent.mkdir()
    link.symlink_to(real)
    saved(link)  # which leads to nothing yet
    assert link.is_symlink()
    load(real)
    real.chmod(0o640)
    content = saved(link, bijection=fp.Planar(2))
    assert link.is_symlink()
    assert real.read_bytes() == content
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert os.listdir(real.parent) == ["real"]
    mask = os.umask(0o027)
    try:
        saved(path)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o606)
    saved(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o606


def test_what_is_no_file_is_not_replaced(path, tmp_path):
    os.mkfifo(path)
    for special in (path, pathlib.Path(os.devnull)):
        with pytest.raises(ValueError, match=f"cannot save to {special}: it is a device or a pipe, not a file"):
            saved(special)
        assert not special.is_file()
    with pytest.raises(IsADirectoryError, match="cannot save to a folder"):
        saved(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere; make it first"):
        saved(tmp_path / "nowhere" / "flow")


def test_leavings_of_killed_writers_are_removed(path, tmp_path):
    ours = tmp_path / f"{path.name}.{'0a' * 16}.tmp"
    at_work = tmp_path / f"{path.name}.{'0b' * 16}.tmp"
    others = [
        tmp_path / name for name in (f"{path.name}.tmp", f"other.{'0a' * 16}.tmp", f"{path.name}.{'0a' * 15}.tmp")
    ]
    for file in (ours, at_work, *others):
        file.write_bytes(b"part of a file")
    with open(at_work, "rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        saved(path)
        assert not ours.exists()
        assert all(file.exists() for file in (at_work, *others))
    saved(path)
    assert sorted(os.listdir(tmp_path)) == sorted(file.name for file in (path, *others))


def in_half(flow, dtype):
    if isinstance(flow, fpp.Flow):
        return flow.to(getattr(torch, dtype))
    return jax.tree.map(lambda leaf: leaf.astype(dtype), flow)


@each_language
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_half_precision_goes_to_the_other_language_and_back(language, dtype, path):
    bijection = fp.Coupling(3, hidden_dims=4)
    first = in_half(MAKERS[language](bijection), dtype)
    save(path, first)
    expected = read_file(path)[1]
    assert {array.dtype for name, array in expected.items() if "weight" in name} == {
        BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
    }
    for backend in ("pyro", "numpyro", "pyro"):
        found = load(path, backend)
        if backend == "pyro":
            assert {p.dtype for p in found.parameters()} == {getattr(torch, dtype)}
        else:
            assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {jnp.dtype(dtype)}
        save(path, found)
        for name, array in read_file(path)[1].items():
            np.testing.assert_array_equal(array, expected[name], strict=True)


def test_a_type_that_files_do_not_have_is_told(path):
    flow = fnp.Flow.init(jax.random.key(0), fp.Planar(2))
    flow = jax.tree.map(lambda leaf: leaf.astype("complex64"), flow)
    with pytest.raises(TypeError, match=r"cannot save weights.\w, an array of complex64; make it float64"):
        save(path, flow)
    assert not path.exists()


def test_a_training_in_bfloat16_goes_on(path):
    x = stripes(20)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), NumPyro.params(small(NumPyro), x))
    options = {"params": params, "warm_up": 0, "learning_rate": 0.03, "ema_decay": 0.9}
    whole = NumPyro.fit(0, small(NumPyro), x, num_epochs=4, **options)
    NumPyro.fit(0, small(NumPyro), x, num_epochs=2, checkpoint=path, **options)
    found = NumPyro.fit(0, small(NumPyro), x, num_epochs=4, checkpoint=path, **options)
    for one, other in zip(jax.tree.leaves(found.params), jax.tree.leaves(whole.params), strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_array_equal(one, other)


def test_bfloat16_needs_torch_alone(path):
    code = """
import sys, torch, flowppl as fp, flowppl.pyro as fpp
flow = fpp.Flow(fp.Planar(2)).to(torch.bfloat16)
fp.save(sys.argv[1], flow)
for ours, theirs in zip(flow.parameters(), fp.load(sys.argv[1]).parameters(), strict=True):
    assert torch.equal(ours, theirs) and theirs.dtype == torch.bfloat16
assert not {"jax", "ml_dtypes"} & sys.modules.keys()
"""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code, path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
