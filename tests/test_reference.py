"""Frozen numbers: the inputs, weights and outputs of every flow, so that no change of them goes unnoticed.

``python tests/test_reference.py`` adds rows for new flows, and leaves those that are there alone. To freeze everything
anew delete the file first; that breaks the promise to users that saved flows keep their numbers, and belongs in the
changelog.
"""

import pathlib

import numpy as np
import pytest
from catalogue import BIJECTIONS, ENDS, draw, merged

from flowppl._arrays import tree as _tree

FILE = pathlib.Path(__file__).with_name("reference.npz")
FLOWS = BIJECTIONS | ENDS
PARTS = ("weights", "event", "context")


def results(bijection, weights, event, context):
    """Both directions, at weights given as one vector, on an event that both sides take."""
    position = 0
    tree = {}
    for path, parameter in _tree.leaves(bijection.parameters()):
        size = int(np.prod(parameter.shape))
        leaf = weights[position : position + size].reshape(parameter.shape)
        position += size
        for key in reversed(path):
            leaf = {key: leaf}
        tree = _tree.merge(tree, leaf)
    assert position == weights.size
    context = context if context.size else None
    y, log_det = bijection.forward(merged(bijection, tree), event, context)
    event = event.reshape(-1, *bijection.y_shape)
    x, log_det_back = bijection.inverse(merged(bijection, tree), event, context)
    rows = [part.reshape(len(event), -1) for part in (y, log_det, x, log_det_back)]
    return np.concatenate(rows, axis=-1)


@pytest.mark.parametrize("name", FLOWS)
def test_numbers_are_those_of_the_reference(name):
    with np.load(FILE) as stored:
        assert f"{name}.results" in stored, "no reference for this flow: run python tests/test_reference.py"
        found = results(FLOWS[name], *(stored[f"{name}.{part}"] for part in PARTS))
        np.testing.assert_allclose(found, stored[f"{name}.results"], rtol=1e-9, atol=1e-9)


def main():
    rows = dict(np.load(FILE)) if FILE.exists() else {}
    for name, bijection in FLOWS.items():
        if f"{name}.results" not in rows:
            rng = np.random.default_rng(list(name.encode()))
            weights = [leaf.ravel() for _, leaf in _tree.leaves(draw(bijection, rng))]
            event = rng.uniform(0.1, 0.9, size=(2, *bijection.x_shape))
            context = rng.normal(size=(2, bijection.context_dim))
            parts = (np.concatenate([*weights, np.zeros(0)]), event, context)
            rows |= {f"{name}.{part}": value for part, value in zip(PARTS, parts, strict=True)}
            rows[f"{name}.results"] = results(bijection, *parts)
            assert np.isfinite(rows[f"{name}.results"]).all(), name
    np.savez_compressed(FILE, **rows)


if __name__ == "__main__":
    main()
