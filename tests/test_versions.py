"""The versions that pyproject.toml admits, and those that the lock files hold."""

import importlib.util
import pathlib
import re

import pytest
from packaging.specifiers import SpecifierSet

ROOT = pathlib.Path(__file__).parents[1]
LOCKS = {path.stem: path.read_text() for path in (ROOT / "locks").glob("*.txt")}


@pytest.fixture(scope="module")
def versions():
    spec = importlib.util.spec_from_file_location("versions", ROOT / "scripts" / "versions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins(text):
    """The versions by name; what a lock file must not hold, such as a path, is no such line."""
    lines = [re.fullmatch(r"([\w-]+)==([\w.]+)", line) for line in text.splitlines()]
    return dict(line.groups() for line in lines)


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_holds_what_is_admitted(name, versions):
    found = pins(LOCKS[name])
    for package, bounds in versions.requirements("dev").items():
        assert SpecifierSet(bounds).contains(found[package]), package


def test_the_oldest_are_the_lower_bounds(versions):
    found, lowest = pins(LOCKS["oldest-3.11"]), versions.requirements("all")
    assert {"torch", "jax", "numpyro", "numpy", "scipy", "arviz", "flax"} <= lowest.keys()
    for package, bounds in lowest.items():
        assert SpecifierSet("==" + re.match(r">=([^,]+)", bounds)[1]).contains(found[package]), package


def test_no_language_needs_the_other_nor_arviz(versions):
    for extra, absent in (("pyro", {"jax", "numpyro", "optax"}), ("numpyro", {"torch", "pyro-ppl"})):
        assert not versions.requirements(extra).keys() & (absent | {"arviz", "matplotlib", "flax"})


def test_the_workflows_run_what_there_is():
    rules = set(re.findall(r"^([\w -]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    targets = {target for rule in rules for target in rule.split()}
    workflows = {path.stem: path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml")}
    assert workflows.keys() == {"tests", "weekly"}
    for text in workflows.values():
        assert set(re.findall(r"run: make ([a-z]+)", text)) <= targets
        for group in re.findall(r"leg: \[(.*)\]", text):
            assert set(group.split(", ")) <= LOCKS.keys()
    assert set(re.search(r"leg: \[(.*)\]", workflows["tests"])[1].split(", ")) == LOCKS.keys()
    for target in re.search(r"target: \[(.*)\]", workflows["tests"])[1].split(", "):
        assert target in targets
