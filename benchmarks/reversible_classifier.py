"""A classifier of digits on a bijection: i-RevNet, in Pyro's language and in NumPyro's.

    python benchmarks/reversible_classifier.py

Every block is two additive couplings with convolutions, as in RevNet (Gomez et al. 2017, arXiv 1707.04585); the image
is squeezed into channels at the start instead of being pooled, so that all of the network but its last linear map is a
bijection (Jacobsen, Smeulders, Oyallon 2018, arXiv 1802.07088). Memory does not grow with the number of blocks, and the
features give back the image.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.datasets
import sklearn.model_selection
import torch

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp


def features(num_blocks, hidden_channels=16):
    """Digits of shape (1, 8, 8) to as many numbers, of shape (4, 4, 4), by blocks of two additive couplings."""
    squeeze = fp.Squeeze((1, 8, 8))
    shape = squeeze.y_shape
    halves = [
        fp.ImageCoupling(shape, fp.Shift(), flip=flip, hidden_channels=hidden_channels, num_blocks=0)
        for flip in (False, True)
    ]
    return fp.reversible(fp.Chain([squeeze, fp.Repeat(fp.Chain(halves), num_blocks)]))


def digits():
    """Images in [0, 1] and labels, to train on and to test."""
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    return sklearn.model_selection.train_test_split(
        (images / 16).reshape(-1, 1, 8, 8).astype(np.float32), labels, test_size=0.2, random_state=0
    )


def train_in_torch(num_blocks=8, num_steps=60):
    """The accuracy on new digits, and how far these are from what their features give back."""
    x, x_test, label, label_test = map(torch.as_tensor, digits())
    torch.manual_seed(0)
    body, head = fpp.FlowTransform(features(num_blocks)).float(), torch.nn.Linear(64, 10).float()
    weights = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(weights, 5e-3)
    for _ in range(num_steps):
        rows = torch.randint(len(x), (256,))
        loss = torch.nn.functional.cross_entropy(head(body(x[rows]).flatten(1)), label[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = body(x_test)
        accuracy = (head(found.flatten(1)).argmax(-1) == label_test).float().mean()
        return float(accuracy), float((body.inv(found) - x_test).abs().max())


def train_in_jax(num_blocks=8, num_steps=60):
    """As :func:`train_in_torch`."""
    import optax

    x, x_test, label, label_test = map(jnp.asarray, digits())
    body = fnp.FlowTransform.init(jax.random.key(0), features(num_blocks))
    model = body, jnp.zeros((64, 10), x.dtype)
    optimizer = optax.adam(5e-3)

    def logits(model, x):
        body, head = model
        return body(x).reshape(len(x), 64) @ head

    @jax.jit
    def run(model, key):
        def step(carry, key):
            model, memory = carry
            rows = jax.random.randint(key, (256,), 0, len(x))
            slope = jax.grad(
                lambda model: optax.softmax_cross_entropy_with_integer_labels(
                    logits(model, x[rows]), label[rows]
                ).mean()
            )(model)
            change, memory = optimizer.update(slope, memory)
            return (optax.apply_updates(model, change), memory), None

        (model, _), _ = jax.lax.scan(step, (model, optimizer.init(model)), jax.random.split(key, num_steps))
        back = model[0].inv(model[0](x_test))
        return (logits(model, x_test).argmax(-1) == label_test).mean(), jnp.abs(back - x_test).max()

    accuracy, error = run(model, jax.random.key(1))
    return float(accuracy), float(error)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_blocks", type=int, default=8)
    options = parser.parse_args()
    for train in (train_in_torch, train_in_jax):
        accuracy, error = train(options.num_blocks)
        print(f"{train.__name__}: accuracy {accuracy:.3f}, images back from their features within {error:.1e}")


if __name__ == "__main__":
    main()
