"""Bijections of the blocks of a vector, side by side."""

import numpy as np
from catalogue import BIJECTIONS, NumpyDraws, draw, merged

import flowppl as fp
from flowppl._arrays import tree as _tree


def test_each_block_has_its_own_bijection(rng):
    stack = BIJECTIONS["stack"]
    params, x, context = merged(stack, draw(stack, rng)), rng.normal(size=(4, 5)), rng.normal(size=(4, 2))
    y, log_det = stack.forward(params, x, context)
    first, _, third = stack.bijections
    by_hand, log_first = first.forward(params["0"], x[:, :2], context)
    np.testing.assert_array_equal(y[:, :2], by_hand)
    np.testing.assert_array_equal(y[:, 2:4], x[:, [3, 2]])
    by_hand, log_third = third.forward(params["2"], x[:, 4:])
    np.testing.assert_array_equal(y[:, 4:], by_hand)
    np.testing.assert_allclose(log_det, log_first + log_third, rtol=1e-14)


def test_each_block_is_given_those_of_y_before_it(rng):
    stack = BIJECTIONS["stack-conditional"]
    params, context = merged(stack, draw(stack, rng)), rng.normal(size=2)
    y, log_det = stack.forward(params, rng.normal(size=(4, 3)), context)
    first, second = stack.bijections
    given = np.concatenate([np.broadcast_to(context, (4, 2)), y[:, :1]], axis=-1)
    parts = first.inverse(params["0"], y[:, :1], context), second.inverse(params["1"], y[:, 1:], given)
    x, log_det_back = stack.inverse(params, y, context)
    np.testing.assert_array_equal(x, np.concatenate([part for part, _ in parts], axis=-1))
    np.testing.assert_allclose(log_det_back, parts[0][1] + parts[1][1], rtol=1e-14)
    np.testing.assert_allclose(log_det, -log_det_back, rtol=1e-9, atol=1e-12)


def test_one_block_alone_may_have_weights_for_each_event(rng):
    stack = fp.Stack([fp.ElementwiseAffine(2), fp.LU(1)])
    params, x = draw(stack, rng), rng.normal(size=3)
    params["1"] = _tree.map_tree(lambda leaf: np.stack([leaf, leaf + 1]), params["1"])
    y, log_det = stack.forward(merged(stack, params), x)
    assert (y.shape, log_det.shape) == ((2, 3), (2,))
    back, log_det_back = stack.inverse(merged(stack, params), y)
    np.testing.assert_allclose(back, [x, x], rtol=1e-12)
    np.testing.assert_allclose(log_det_back, -log_det, rtol=1e-12)


def test_a_stack_has_the_support_and_the_costs_of_its_blocks():
    ends = fp.Stack([fp.Elementwise(2, fp.Sigmoid()), fp.Elementwise(1, fp.Bounded(0.0, 1.0))])
    assert (ends.x_support, ends.y_support) == ((-np.inf, np.inf), (0.0, 1.0))
    assert fp.Chain([fp.realnvp(3), ends]).y_support == (0.0, 1.0)
    costs = fp.Stack([fp.LU(2), fp.maf(2)])
    assert (costs.forward_cost, costs.inverse_cost) == ("sequential", "parallel")


def test_every_block_is_set_from_its_data(rng):
    blocks = [fp.ActNorm(2), fp.Conditional(fp.ActNorm(1), 2)]
    data = rng.normal(size=(50, 3)) * [1.0, 2.0, 3.0] + 5
    for stack in (fp.Stack([fp.ActNorm(2), fp.ActNorm(1)]), fp.Stack(blocks, conditional=True)):
        params = fp.initialize(stack, NumpyDraws(rng))
        x, _ = stack.inverse(stack.init_from(params, data), data)
        np.testing.assert_allclose([x.mean(axis=0), x.std(axis=0)], [[0] * 3, [1] * 3], atol=1e-12)
