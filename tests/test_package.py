"""The package as a whole: what it imports, how its source looks, what its documentation promises."""

import math
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def run(*command, cwd=ROOT):
    return subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("flowppl", ("torch", "jax", "pyro", "numpyro", "arviz")),
        ("flowppl.numpyro", ("torch", "pyro", "arviz")),
        ("flowppl.pyro", ("jax", "numpyro", "arviz")),
    ],
)
def test_imports_no_more_than_it_needs(module, absent):
    code = f"import sys, {module}; print([m for m in {absent} if m in sys.modules])"
    result = run("-c", code)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize(
    ("language", "absent"),
    [
        ("pyro", ("jax", "jaxlib", "numpyro", "optax", "flax", "arviz", "matplotlib")),
        ("numpyro", ("torch", "pyro", "flax", "arviz", "matplotlib")),
    ],
)
def test_a_language_works_where_nothing_else_is_installed(language, absent, tmp_path):
    other = "numpyro" if language == "pyro" else "pyro"
    make = {"pyro": "Flow(fp.Planar(2))", "numpyro": "Flow.init(jax.random.key(0), fp.Planar(2))"}[language]
    code = f"""
import sys
class Absent:
    def find_spec(name, *_):
        if name in {absent}:
            raise ModuleNotFoundError("No module named " + name, name=name)
sys.meta_path.insert(0, Absent)
import numpy as np, flowppl as fp, flowppl.{language} as adapter
from flowppl.diagnostics import k_hat
{"import jax" if language == "numpyro" else ""}
fp.save({str(tmp_path / "flow")!r}, adapter.{make})
assert fp.load({str(tmp_path / "flow")!r}).bijection == fp.Planar(2)
assert k_hat(np.random.default_rng(0).normal(size=1000)) < 0.7
for call in (lambda: fp.load({str(tmp_path / "flow")!r}, backend={other!r}), lambda: __import__("flowppl.{other}")):
    try:
        call()
    except ImportError as error:
        assert "pip install 'flowppl[{other}]'" in str(error), error
    else:
        raise AssertionError("{other} is there")
"""
    result = run("-W", "error", "-c", code)
    assert result.returncode == 0, result.stderr[-2000:]


def test_import_changes_nothing_global():
    code = """
import torch, jax, warnings, numpy as np
before = torch.get_default_dtype(), jax.config.jax_enable_x64, torch.distributions.Distribution._validate_args, \
    list(warnings.filters), dict(np.geterr())
warnings.simplefilter("ignore")
import pyro, numpyro, scipy.special  # what they set is theirs
hosts = list(warnings.filters), torch.distributions.Distribution._validate_args
import flowppl.pyro, flowppl.numpyro
assert hosts == (list(warnings.filters), torch.distributions.Distribution._validate_args)
assert before[:2] == (torch.get_default_dtype(), jax.config.jax_enable_x64) and before[4] == dict(np.geterr())
"""
    result = run("-c", code)
    assert result.returncode == 0, result.stderr


def test_compiles_to_one_graph_when_imported_before_torch():
    code = """
import flowppl as fp
import torch
flow = fp.realnvp(3, num_flows=2, hidden_dims=4)
import flowppl.pyro as fpp
transform = fpp.FlowTransform(flow)
torch.compile(transform.forward_and_log_det, backend="aot_eager", fullgraph=True)(torch.ones(2, 3))
"""
    result = run("-W", "ignore", "-c", code)
    assert result.returncode == 0, result.stderr[-2000:]


SOURCES = {path.relative_to(ROOT / "flowppl"): path.read_text() for path in (ROOT / "flowppl").rglob("*.py")}
SHIM = pathlib.Path("_arrays/namespace.py")
CORE = {path: text for path, text in SOURCES.items() if path.parts[0] not in ("pyro", "numpyro") and path != SHIM}


def test_only_the_shim_and_the_adapters_name_a_framework():
    for path, text in CORE.items():
        assert not re.findall(r"^\s*(?:import|from) (torch|jax|pyro|numpyro)\b", text, re.MULTILINE), path


def test_warnings_point_at_the_line_of_the_user():
    for path, text in SOURCES.items():
        assert text.count("warnings.warn(") == text.count("stacklevel=level_of_caller()"), path


# The rooms of the package from the ground up; those of one floor do not know each other.
FLOORS = (
    {"_arrays", "checks", "progress", "version"},
    {"declare"},
    {"networks", "univariate"},
    {"bijections"},
    {"recipes", "discrete"},
    {"inference"},
    {"serialization", "plotting"},
    {"training"},
    {"autoencoders"},
    {"pyro", "numpyro"},
    {"__init__", "diagnostics", "images"},
)


def room_of(path):
    return path.parts[0].removesuffix(".py")


def test_no_room_imports_upwards():
    height = {room: height for height, floor in enumerate(FLOORS) for room in floor}
    assert height.keys() == {room_of(path) for path in SOURCES}
    for path, text in SOURCES.items():
        for module in re.findall(r"^\s*(?:from|import) flowppl(?:\.(\w+))?", text, re.MULTILINE):
            room = module or "__init__"
            assert room == room_of(path) or height[room] < height[room_of(path)], f"{path} imports {room}"


def test_the_adapters_have_the_same_files():
    ours, theirs = ({path.name for path in (ROOT / "flowppl" / name).glob("*.py")} for name in ("pyro", "numpyro"))
    assert ours == theirs


def test_core_writes_in_place_nowhere():
    for path, text in CORE.items():
        assert not re.findall(r"^ +(?:x|y|event|raw|log_det|total)\[.*\] =|\+= log_det", text, re.MULTILINE), path


@pytest.mark.parametrize("tool", [("ruff", "check"), ("ruff", "format", "--check"), ("mypy",)])
def test_source_is_clean(tool):
    """Programs of users in tests/typing too, which mypy reads strictly."""
    assert (ROOT / "flowppl" / "py.typed").exists()
    result = run("-m", *tool, *(["."] if tool[0] == "ruff" else []))
    assert result.returncode == 0, result.stdout


def test_everything_public_is_documented():
    import flowppl
    import flowppl.numpyro
    import flowppl.pyro

    for module in (flowppl, flowppl.pyro, flowppl.numpyro):
        for name in module.__all__:
            doc = getattr(module, name).__doc__
            assert doc, (module.__name__, name)
            if isinstance(getattr(module, name), type) and issubclass(getattr(module, name), flowppl.Bijection):
                assert name == "Bijection" or "Example:" in doc, name


def test_every_recipe_is_traced_without_a_warning_in_jax_as_it_comes():
    """In single precision, which the other tests do not set. What may warn runs in Python, before a compilation."""
    code = """
import warnings
warnings.simplefilter("ignore")
import jax, flowppl as fp, flowppl.numpyro as fnp
warnings.simplefilter("error")
def one(flow):
    y = flow().sample(jax.random.key(1), (2,))
    return y, flow().log_prob(y)
for name in fp.available_flows():
    size = (1, 2, 4) if name in fp.recipes.IMAGE_RECIPES else 3
    num_flows = (1, 1, 1) if name == "flowpp_image" else 1
    flow = fnp.Flow.init(jax.random.key(0), fp.make_flow(name, size, num_flows=num_flows))
    assert {leaf.dtype.name for leaf in jax.eval_shape(one, flow)} == {"float32"}, name
"""
    result = run("-c", code)
    assert result.returncode == 0, result.stderr[-2000:]


README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", README, re.DOTALL)


def test_readme_names_every_flow():
    import flowppl as fp

    for name in sorted(set(fp.recipes.NAMED_RECIPES) - {"sylvester"}):
        flow = fp.make_flow(name, (1, 8, 8) if name in fp.recipes.IMAGE_RECIPES else 8)
        costs = f"| {flow.forward_cost} | {flow.inverse_cost} |"
        rows = [line for line in README.splitlines() if line.startswith(f"| `{name}`")]
        assert any(costs in row for row in rows), f"no row of the table of flows names {name}"


@pytest.mark.filterwarnings("ignore")
def test_readme_examples_print_what_it_says(tmp_path, monkeypatch, capsys):
    """One after the other, as a reader would type them; numbers may differ from machine to machine, words may not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flowppl.inference.fitting.MAX_SECONDS", math.inf)  # the words do not depend on the machine
    names = {"__name__": "readme"}
    for example, expected in EXAMPLES:
        exec(compile(example, "README.md", "exec"), names)
        if expected:
            numbers = re.compile(r"-?\d[\d.]*(e-?\d+)?")
            found = capsys.readouterr().out
            assert numbers.sub("#", found) == numbers.sub("#", expected)


@pytest.mark.parametrize(
    ("switch", "progress", "terminal", "shown"),
    [
        (None, None, False, False),
        (None, None, True, True),
        (False, None, True, False),
        (True, None, False, True),
        (False, True, False, True),
        (True, False, True, False),
    ],
)
def test_one_switch_for_all_progress_bars(switch, progress, terminal, shown, monkeypatch, capsys):
    import flowppl as fp
    from flowppl.progress import progress_bar

    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    try:
        fp.set_progress(switch)
        with progress_bar("fit", 10, "step", progress) as bar:
            bar.update(10)
    finally:
        fp.set_progress(None)
    assert ("10/10" in capsys.readouterr().err) == shown
    with pytest.raises(TypeError, match="expected True, False or None"):
        fp.set_progress("off")
