"""A fit goes on from its checkpoint, wherever it was stopped, to the weights that it would have had."""

import concurrent.futures
import contextlib
import json
import math
import os
import pathlib
import subprocess
import sys
import time

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from resumed_runs import CLOCKS, KINDS, LANGUAGES, weights
from test_saved_files import SOME, damaged_bytes, files

import flowppl as fp
import flowppl.pyro as fpp
from flowppl.inference import affine, modes, outside
from flowppl.inference.draws import place_of, set_place
from flowppl.inference.fitting import CHUNK, NUM_CHECKS, Round, train
from flowppl.numpyro import trainers as numpyro_trainers
from flowppl.pyro import trainers as pyro_trainers
from flowppl.serialization import read_file, save, write_file
from flowppl.training import fits
from flowppl.training.fits import FitCheckpoint

ROUNDS = (Round(200, 64, 0.1), Round(300, 64, 0.01), Round(100, 64, 0.01))
each_language = pytest.mark.parametrize("language", LANGUAGES)


class Stopped(Exception):
    pass


def stop(*_):
    raise Stopped


@pytest.fixture(autouse=True)
def always_due(monkeypatch):
    monkeypatch.setattr(fits, "EVERY", 0.0)
    monkeypatch.setattr(fits, "SHARE", math.inf)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "here" / "fit"


@pytest.fixture(autouse=True)
def folder(path):
    path.parent.mkdir()


class Drunkard:
    """A trainer whose steps are random, with a memory of the steps before."""

    is_dense = is_subsampled = False

    def __init__(self, num_restarts, has_affine):
        self.rng, self.num_restarts, self.has_affine = np.random.default_rng(0), num_restarts, has_affine
        self.where, self.speed = self.rng.normal(3.0, size=num_restarts), None

    def settle(self, end):
        return False

    def begin(self, affine):
        self.speed = np.zeros_like(self.where) + affine + self.rng.normal()

    def run(self, chunk):
        self.speed = 0.5 * self.speed + chunk.rates[0] * self.rng.normal(size=self.num_restarts)
        self.where = 0.9 * self.where + self.speed
        losses = np.abs(self.where)[:, None] + self.rng.random((self.num_restarts, CHUNK))
        return np.where(losses < 0.05, np.nan, losses)

    def fold(self):
        self.where = self.where + self.rng.normal()
        return abs(self.where[0]) / 4

    def log_weights(self):
        noise = self.rng.normal(size=(self.num_restarts, NUM_CHECKS // 16))
        return -0.5 * (noise + self.where[:, None]) ** 2 + 0.5 * noise**2

    def select(self, index, kept):
        self.num_restarts, self.where = 1, self.where[index : index + 1]
        self.speed = None if self.speed is None else self.speed[index : index + 1]
        return kept[index : index + 1]

    def get(self):
        return self.where.copy()

    def set(self, params):
        self.where = params

    def arrays_of(self, params):
        return {"where": params}

    def params_of(self, arrays):
        return arrays["where"]

    def memory(self, in_round):
        return {"random": place_of(self.rng)} | ({"speed": self.speed} if in_round else {})

    def recall(self, params, memory, affine):
        self.where, self.speed = params, None
        if affine is not None:
            self.begin(affine)
            self.speed = memory["speed"]
        set_place(self.rng, memory["random"])

    def log_density(self, params):
        return [1.0, math.nan, -math.inf]


def walk(path, num_restarts, has_affine, callback=None):
    trainer, checkpoint = Drunkard(num_restarts, has_affine), FitCheckpoint(path, {"seed": 0})
    checkpoint.describe(trainer, {"more": [1, None]})
    history = train(trainer, ROUNDS, math.inf, False, callback, checkpoint)
    checkpoint.finish(trainer, history)
    return trainer, history


@pytest.mark.parametrize(("num_restarts", "has_affine"), [(1, True), (3, True), (3, False)])
def test_the_driver_goes_on_from_any_moment(num_restarts, has_affine, path, monkeypatch):
    whole, history = walk(path, num_restarts, has_affine, lambda *_: None)
    assert len(history.losses) >= 600
    again, told = walk(path, num_restarts, has_affine, stop)  # there is nothing left to do
    path.unlink()
    write, stops = FitCheckpoint._write, 0

    def write_and_stop(*args, **options):
        """In the midst of rounds, between them, and at the end."""
        write(*args, **options)
        raise Stopped

    monkeypatch.setattr(FitCheckpoint, "_write", write_and_stop)
    while True:
        try:
            found, last = walk(path, num_restarts, has_affine)
            break
        except Stopped:
            stops += 1
    assert stops > len(history.losses) / CHUNK + 3
    for trainer, each in ((again, told), (found, last)):
        np.testing.assert_array_equal(trainer.where, whole.where)
        np.testing.assert_array_equal(each.losses, history.losses)
        assert repr((each.check, each.checks, each.stopped)) == repr((history.check, history.checks, history.stopped))


@pytest.fixture
def quick(monkeypatch):
    """Searches and judgements by few draws, that a busy machine does not cut short."""
    for module in (numpyro_trainers, pyro_trainers):
        monkeypatch.setattr(module, "NUM_CHECKS", 1024)
    for name, module in CLOCKS.items():
        monkeypatch.setattr(module, name, math.inf)
    monkeypatch.setattr(modes, "NUM_SCREENED", 512)
    monkeypatch.setattr(modes, "NUM_SEARCHES", 8)
    monkeypatch.setattr(modes, "MAX_SEARCHES", 16)
    monkeypatch.setattr(outside, "NUM_WIDE", 512)
    monkeypatch.setattr(affine, "MAX_FIXED", 0)  # with affine rounds, as of many latents


def assert_same(one, other):
    first, second = weights(one.params), weights(other.params)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], strict=True, err_msg=name)
    np.testing.assert_array_equal(one.losses, other.losses)
    assert (repr(one.checks), one.stopped) == (repr(other.checks), other.stopped)


def stop_at(last, seen):
    def callback(step, loss):
        seen.append((step, loss))
        if step == last:
            raise Stopped

    return callback


CHANGES = [
    ({"y": np.ones(3)}, "with other argument 1 of the model; name another file, or delete it"),
    ({"y": np.ones(4)}, "with other argument 1 of the model"),
    ({"num_steps": 200, "max_seconds": 9.0}, "with other num_steps, max_seconds"),
    ({"num_particles": None, "learning_rate": 0.1}, "with other num_particles, learning_rate"),
    ({"flow": "planar"}, "with other flow"),
    ({"num_modes": 1}, "with other num_modes"),
    ({"kind": "two modes"}, "with other arguments of the model"),
    ({"kind": "three latents"}, "with other latents"),
    ({"kind": "another prior"}, "with other log density of the model"),
    ({"kind": "another guide"}, "with other guide"),
]
FILE_CHANGES = [
    (lambda c, a: c["fixed"].update({"version of flowppl": "0.0"}), "with other version of flowppl"),
    (lambda c, a: c["progress"].pop("done"), r"its progress must have .*: missing \['done'\]"),
    (lambda c, a: c["progress"].update(seconds_in_all=float("nan")), "what it says of its time cannot be"),
    (lambda c, a: c["progress"].update(num_affine=10**18), "what it says of its rounds cannot be"),
    (lambda c, a: c["progress"].update(check={}), r"the state of this fit \(KeyError: 'k_hat'\)"),
    (lambda c, a: c["searches"][0].update(dim=3), "what it says of its searches cannot be"),
    (lambda c, a: c.pop("searches"), r"missing \['searches'\]"),
    (lambda c, a: a.pop("state/random"), "the state of this fit .*random"),
    (lambda c, a: a.pop("state/near"), "the state of this fit .*near"),
    (lambda c, a: a.pop("start/0.loc"), "the state of this fit .*0.loc"),
    (lambda c, a: a.update({"state/random": np.zeros(3)}), "the state of this fit"),
    (lambda c, a: a.update({"state/alone.0.0": np.zeros(3)}), "the state of this fit"),
    (lambda c, a: a.update({"more": np.zeros(3)}), "holds the array 'more', which is none of a checkpoint"),
    (lambda c, a: a.pop(next(name for name in a if name.startswith("now/"))), "with other networks and flows"),
    (
        lambda c, a: c.update(kind="checkpoint"),
        "holds a checkpoint of fit_density, not one of fit; name another file, or delete it to start anew",
    ),
]


def fit(lang, path, callback=None, kind="one mode", **options):
    """Of a small flow, which is soon compiled."""
    flow = {} if kind == "another guide" else {"flow": small_flow}
    return lang.fit(kind, path, callback, **flow | options)


def small_flow(dim):
    return fp.iaf(dim, num_flows=1, hidden_dims=4)


@each_language
def test_a_fit_goes_on_from_where_it_was_stopped(language, path, quick):
    """In the midst of the affine steps, at the start of the flow's and at the very end; and of others it is refused."""
    lang, seen = LANGUAGES[language], []
    whole = fit(lang, path, lambda *step: seen.append(step))
    (*_, first_of_flow, last) = [step for step, _ in seen]
    assert_same(fit(lang, path, stop), whole)
    path.unlink()
    again = []
    for step in (100, first_of_flow, last):
        with pytest.raises(Stopped):
            fit(lang, path, stop_at(step, again))
        if step == 100:
            told(lang, path)
    resumed = fit(lang, path, stop)
    assert_same(resumed, whole)
    assert again == seen
    assert_same(fit(lang, path), whole)
    content = path.read_bytes()
    for change, message in CHANGES:
        with pytest.raises(ValueError, match=f"{path} is a checkpoint of another training, {message}"):
            fit(lang, path, **change)
    if language == "numpyro":
        with pytest.raises(ValueError, match="with other rng_key"):
            fit(lang, path, seed=1)
    with pytest.raises(ValueError, match=r"holds a checkpoint of fit, which flowppl.load does not read; fit goes on"):
        fp.load(path)
    assert path.read_bytes() == content
    with pytest.raises(ValueError, match="fit: a checkpoint cannot tell an optimizer of the host"):
        fit(lang, path, optimizer=lang.optimizer)
    assert os.listdir(path.parent) == [path.name]


def told(lang, path):
    """What does not fit in the file is told, which is then as it was."""
    whole = read_file(path)
    for change, message in FILE_CHANGES:
        config, arrays = json.loads(json.dumps(whole[0])), dict(whole[1])
        change(config, arrays)
        write_file(path, config, arrays)
        content = path.read_bytes()
        with pytest.raises(ValueError, match=message):
            fit(lang, path)
        assert path.read_bytes() == content
    write_file(path, *whole)


@each_language
def test_what_a_callback_ended_goes_on(language, path):
    lang = LANGUAGES[language]
    whole = lang.fit("another guide", None, num_steps=300)
    short = lang.fit("another guide", path, lambda step, _: step == 100, num_steps=300)
    assert (short.stopped, len(short.losses)) == ("callback", 100)
    with pytest.raises(ValueError, match="with other log density of the model"):
        lang.fit("another guide, another prior", path, num_steps=300)
    assert_same(lang.fit("another guide", path, num_steps=300), whole)


def test_time_counts_in_all_runs(path):
    """Of a time that is over nothing is left, and what was reached is the result."""
    walk(path, 1, True, None)
    config, arrays = read_file(path)
    assert 0 < config["progress"]["seconds_in_all"] < 60
    config["progress"]["seconds_in_all"] = 1000.0
    write_file(path, config, arrays)
    begin = time.monotonic()
    checkpoint = FitCheckpoint(path, {"seed": 0})
    assert checkpoint.seconds == 1000.0
    trainer = Drunkard(1, True)
    checkpoint.describe(trainer, {"more": [1, None]})
    training = checkpoint.resume(trainer)
    checkpoint._write(trainer, training, is_whole=False)
    assert 1000 <= FitCheckpoint(path, {"seed": 0}).seconds < 1000 + time.monotonic() - begin


def test_writing_takes_a_small_part_of_the_time(path, monkeypatch):
    """Once in ten seconds, or less often where it takes long."""
    now, written = [0.0], []
    monkeypatch.setattr(fits, "EVERY", 10.0)
    monkeypatch.setattr(fits, "SHARE", 0.05)
    monkeypatch.setattr(fits.time, "monotonic", lambda: now[0])
    checkpoint = FitCheckpoint(path, {})

    def write(*_):
        written.append(now[0])
        now[0] += seconds

    monkeypatch.setattr(fits, "write_file", write)
    trainer = Drunkard(1, True)
    here = walk_of(trainer)
    for seconds, period in ((0.1, 10.1), (2.0, 42.0)):  # noqa: B007
        written.clear()
        for _ in range(200):
            now[0] += 1
            checkpoint.keep(trainer, here)
        assert set(np.round(np.diff(written)[1:])) <= {math.floor(period), math.ceil(period)}


def walk_of(trainer):
    check = fits._read_check(
        {"k_hat": 0.1, "k_hat_threshold": 0.7, "ess": 9.0, "num_draws": 9, "elbo": 0.0, "elbo_se": 0.1}
        | {"log_evidence": 0.0, "log_evidence_se": 0.1, "nonfinite": 0.0}
    )
    return fits.Training(trainer.get(), check, 0, 1, checks=[check])


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The bytes of a checkpoint in the midst of a round."""
    path = tmp_path_factory.mktemp("some") / "fit"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fits, "EVERY", 0.0)
        with pytest.raises(Stopped):
            walk(path, 3, True, stop_at(700, []))
    return path.read_bytes()


def go_on(path):
    start = time.process_time()
    trainer, checkpoint = Drunkard(3, True), FitCheckpoint(path, {"seed": 0})
    checkpoint.describe(trainer, {"more": [1, None]})
    checkpoint.resume(trainer)
    assert time.process_time() - start < 1


def tell_damage(content, data, path):
    damaged = data.draw(damaged_bytes(content))
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=str(path)) if damaged != content else contextlib.nullcontext():
        go_on(path)
    assert path.read_bytes() == damaged


def tell_description(content, data, path):
    """Another value, or none, in any place of the description, under a digest that is right."""
    path.write_bytes(content)
    config, arrays = read_file(path)
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
    with contextlib.suppress(ValueError):
        go_on(path)


@hypothesis.settings(max_examples=60, **files)
@hypothesis.given(data=strategies.data())
def test_a_damaged_checkpoint_is_refused_in_words(data, content, path):
    tell_damage(content, data, path)


@hypothesis.settings(max_examples=60, **files)
@hypothesis.given(data=strategies.data())
def test_any_description_of_a_fit_goes_on_or_is_refused_in_words(data, content, path):
    tell_description(content, data, path)


@pytest.mark.stress
@hypothesis.settings(max_examples=5000, **files)
@hypothesis.given(data=strategies.data())
def test_thousands_of_damaged_checkpoints_are_refused_in_words(data, content, path):
    tell_damage(content, data, path)


@pytest.mark.stress
@hypothesis.settings(max_examples=5000, **files)
@hypothesis.given(data=strategies.data())
def test_thousands_of_descriptions_of_fits_go_on_or_are_refused_in_words(data, content, path):
    tell_description(content, data, path)


@pytest.fixture
def disk(path):
    """A disk of its own, of 64 kB, in the place of the folder."""
    if os.geteuid() or sys.platform != "linux":
        pytest.skip("only root makes disks, and this is for Linux")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path.parent], capture_output=True).returncode:
        pytest.skip("no disk may be mounted here, as in a container without the right to")
    yield path.parent
    subprocess.run(["umount", path.parent], check=True)


def write_fit(path):
    walk(path, 1, True)


def write_density(path):
    flow = fpp.Flow(fp.Planar(2))
    fpp.fit_density(flow, np.random.default_rng(0).normal(size=(20, 2)), num_epochs=1, checkpoint=path, progress=False)


def write_flow(path):
    save(path, fpp.Flow(fp.Planar(2)))


@pytest.mark.parametrize("write", [write_flow, write_density, write_fit])
def test_a_disk_that_is_full_or_only_read_keeps_the_old_file(write, path, disk):
    write(path)
    before = path.read_bytes()
    with contextlib.suppress(OSError), open(disk / "filling", "wb", buffering=0) as filling:
        while True:
            filling.write(bytes(512))
    if write is not write_flow:
        path.rename(disk / "old")
    is_there = os.listdir(disk)
    message = f"cannot save to {path}: No space left on device; make room, or name a file on another disk; a file that"
    with pytest.raises(OSError, match=message):
        write(path)
    assert sorted(os.listdir(disk)) == sorted(is_there)
    assert (disk / (path.name if write is write_flow else "old")).read_bytes() == before
    (disk / "filling").unlink()
    write(path)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    is_there, before = os.listdir(disk), path.read_bytes()
    message = "Read-only file system; name a file in a folder in which you may write, or ask for the right to"
    if write is write_flow:  # the trainings have ended, and write nothing
        with pytest.raises(OSError, match=message):
            write(path)
    with pytest.raises(OSError, match=message):
        write(disk / "another")
    assert (os.listdir(disk), path.read_bytes()) == (is_there, before)


def test_of_two_fits_with_one_checkpoint_each_writes_all(path):
    """Whatever is read meanwhile is whole, and both end as one alone does."""
    alone = walk(path, 1, True)[0].where
    path.unlink()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(walk, path, 1, True) for _ in range(2)]
        while not all(run.done() for run in runs):
            if path.exists():
                go_on_alone(path)
    for run in runs:
        np.testing.assert_array_equal(run.result()[0].where, alone)
    assert os.listdir(path.parent) == [path.name]


def go_on_alone(path):
    trainer, checkpoint = Drunkard(1, True), FitCheckpoint(path, {"seed": 0})
    checkpoint.describe(trainer, {"more": [1, None]})
    assert checkpoint.resume(trainer) is not None


@pytest.mark.stress
@each_language
def test_trainings_that_are_killed_at_random_moments_end_with_the_same_weights(language):
    """Eighteen kills of each kind, by both languages more than two hundred, of which two thirds are of `fit`."""
    script = pathlib.Path(__file__).with_name("resumed_runs.py")
    command = [sys.executable, "-W", "ignore", str(script), language, "18"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    kinds = {line.split(" {")[0].removeprefix(f"{language} ") for line in result.stdout.splitlines()}
    assert kinds == set(KINDS)
