"""What a user does first, where one language is installed and the other is not: scripts/release.py runs it.

python -I scripts/smoke.py pyro
"""

import doctest
import importlib
import pathlib
import sys
import tempfile

HOSTS = {"pyro": {"torch", "pyro"}, "numpyro": {"jax", "numpyro"}}


def check_import(language):
    """Import the adapter, from where it was installed, without the other language, which is told to be absent."""
    other = next(name for name in HOSTS if name != language)
    adapter = importlib.import_module(f"flowppl.{language}")
    place = pathlib.Path(adapter.__file__)
    assert place.is_relative_to(sys.prefix), place
    assert (place.parents[1] / "py.typed").exists()
    assert not HOSTS[other] & set(sys.modules)
    check_absent(other, importlib.import_module, f"flowppl.{other}")
    return adapter


def check_absent(other, function, *arguments, **options):
    """That a call which needs the other language ends in words on what to install."""
    try:
        function(*arguments, **options)
    except ImportError as error:
        message = str(error)
    else:
        raise AssertionError(f"{function} works without {other}")
    assert f"pip install 'flowppl[{other}]'" in message, message


def check_examples(adapter):
    """Run the first example of the package, that of ``fit``, and those of ``Flow``."""
    for thing in (adapter.fit, adapter.Flow):
        runner = doctest.DocTestRunner()
        (test, *_) = [test for test in doctest.DocTestFinder().find(thing) if test.examples]
        assert not runner.run(test).failed


def check_fit(language, adapter):
    """Fit, save and load a posterior that is known."""
    import flowppl as fp

    host = importlib.import_module(language)
    dist = importlib.import_module(f"{language}.distributions")
    if language == "pyro":
        import torch

        key, data, other_key = (), torch.ones(10), {}
    else:
        import jax

        key, data, other_key = (jax.random.key(0),), jax.numpy.ones(10), {"rng_key": jax.random.key(1)}

    def model(y):
        mu = host.sample("mu", dist.Normal(0.0, 1.0))
        with host.plate("data", 10):
            host.sample("y", dist.Normal(mu, 1.0), obs=y)

    result = adapter.fit(*key, model, data, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "result.flow"
        result.save(path)
        again = fp.load(path)
        other = next(name for name in HOSTS if name != language)
        check_absent(other, fp.load, path, backend=other)
    for each in (result, again):
        draws = each.sample(4000, **other_key)["mu"]
        assert abs(float(draws.mean()) - 10 / 11) < 0.05, draws.mean()
        assert abs(float(draws.std()) - 11**-0.5) < 0.05, draws.std()


def main(language):
    adapter = check_import(language)
    check_examples(adapter)
    check_fit(language, adapter)


if __name__ == "__main__":
    main(*sys.argv[1:])
