"""A fit goes on from its checkpoint, wherever it was stopped, to the weights that it would have had."""

import math

import numpy as np
import pytest
from resumed_runs import LANGUAGES

from flowppl.inference.draws import place_of, set_place
from flowppl.inference.fitting import CHUNK, NUM_CHECKS, Round, train
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

    def log_density(self):
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
