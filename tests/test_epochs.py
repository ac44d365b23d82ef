"""The loop of all trainings in passes over data."""

import pytest

from flowppl.inference.epochs import Progress, run_epochs


def run(losses, **options):
    progress = Progress()
    fixed = {"num_rows": 2, "batch_size": 1, "num_epochs": len(losses), "patience": None, "bar": False, "advice": ""}
    run_epochs("fit", lambda epoch: (losses[epoch], None), lambda: None, progress, **(fixed | options))
    return progress


def test_a_callback_sees_each_epoch_and_stops_the_training():
    seen, saved = [], []

    def callback(epoch, loss):
        seen.append((epoch, loss))
        return loss < 3

    progress = run([[5, 3], [3, 1], [1, 1]], callback=callback, after_epoch=lambda: saved.append(len(seen)))
    assert seen == [(0, 4.0), (1, 2.0)]
    assert saved == [0, 1]  # before the callback, which may look at what was saved
    assert (progress.stopped, progress.losses, progress.best_epoch) == ("callback", [4.0, 2.0], 1)
    assert run([[5, 3], [3, 1]], callback=lambda epoch, loss: None).stopped == "num_epochs"


def test_a_callback_that_interrupts_ends_the_training():
    def callback(epoch, loss):
        raise KeyboardInterrupt

    progress = run([[5, 3], [3, 1]], callback=callback)
    assert (progress.stopped, progress.losses) == ("interrupted", [4.0])


def test_what_cannot_be_called_is_told_at_once():
    with pytest.raises(TypeError, match=r"fit: callback must be a function of the epoch and its loss, got bool"):
        run([[1, 1]], callback=True)
