"""The public names of both adapters: written where an editor, a type checker and a reader find them."""

import ast
import inspect
import pathlib
import pickle
import re

import jax
import jedi
import jedi.settings
import pytest
import torch

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl.recipes import IMAGE_RECIPES, NAMED_BIJECTIONS, NAMED_RECIPES

ADAPTERS = {"pyro": fpp, "numpyro": fnp}
LAYERS = {kind.__name__: kind for kind in NAMED_BIJECTIONS}
FOLDER = pathlib.Path(fp.__file__).parent
EMPTY = inspect.Parameter.empty


def arguments(function):
    """Names, kinds and defaults, in their order."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", LAYERS)
def test_layers_take_the_arguments_of_the_bijection(name):
    expected = arguments(LAYERS[name])
    ours, theirs = getattr(fpp, name), getattr(fnp, name)
    assert arguments(ours) == expected
    assert arguments(theirs) == [*expected, ("params", inspect.Parameter.KEYWORD_ONLY, EMPTY)]
    assert arguments(theirs.init) == [("key", inspect.Parameter.POSITIONAL_OR_KEYWORD, EMPTY), *expected]
    assert issubclass(ours, fpp.FlowTransform)
    assert issubclass(theirs, fnp.FlowTransform)


@pytest.mark.parametrize("name", NAMED_RECIPES)
def test_helpers_take_the_arguments_of_the_recipe(name):
    expected = arguments(NAMED_RECIPES[name])
    assert arguments(getattr(fpp, name)) == expected
    assert arguments(getattr(fnp, name)) == [("key", inspect.Parameter.POSITIONAL_OR_KEYWORD, EMPTY), *expected]


@pytest.mark.parametrize("name", [*LAYERS, *NAMED_RECIPES])
def test_every_argument_reaches_the_bijection(name):
    """Called with each argument off its default, by name and in order, all three build the same."""
    core = LAYERS.get(name) or NAMED_RECIPES[name]
    odd = {
        "dim": 4,
        "num_flows": 3,
        "num_units": 2,
        "rank": 2,
        "num_reflections": 4,
        "univariate": fp.RationalQuadraticSpline(3),
        "hidden_dims": (5, 5),
        "hidden_factors": (3, 2),
        "lipschitz": 0.5,
        "context_dim": 2,
        "activation": "elu",
        "mask": (True, False, True, False),
        "order": (3, 1, 0, 2),
        "residual": True,
        "permutation": (3, 1, 0, 2),
        "num_bins": 3,
        "bound": 2.0,
        "num_components": 3,
        "log_scale_bound": 2.0,
        "start": "rotation",
        "factor": 3,
        "new_shape": (9, 12),
        "bijection": fp.LU(2),
        "flip": True,
        "hidden_channels": 4,
        "num_blocks": 1,
        "patch_size": 1,
        "hidden_dim": 4,
        "num_heads": 2,
        "kernel_size": 5,
        "alpha": 0.1,
        "num_scales": 1,
        "num_steps": 5,
    }
    if "shape" in inspect.signature(core).parameters:
        images = {
            "shape": (2, 4, 8) if name in NAMED_RECIPES else (2, 6, 9),
            "mask": "checkerboard",
            "num_flows": (1, 2, 2) if name == "flowpp_image" else 3,
            "bijection": fp.Pixelwise((1, 6, 9), fp.LU(1)) if name == "FactorOut" else fp.LU(2),
            "prior": fp.Elementwise((2, 6, 9), fp.Scale()),
        }
        odd |= images
    parameters = inspect.signature(core).parameters
    given = {key: odd[key] for key in parameters if key in odd}
    variants = [given]
    if "network" in parameters:
        shape = {"shape": (2, 4, 4)} if "shape" in parameters else {"dim": 4}
        networks = {
            "ImageAutoregressive": fp.PixelConvNet(2, 2, 3, 0, context_dim=1),
            "Continuous": fp.MLP(4, 4, hidden_dims=3, context_dim=1),  # of the time
        }
        variants.append(shape | {"network": networks.get(name, fp.MLP(2, 4, hidden_dims=3))})
    if "adjacency" in parameters:
        variants.append({"dim": 3, "adjacency": ((0, 1, 0), (0, 0, 0), (1, 1, 0))})
    for options in variants:
        expected = core(**options)
        if name in LAYERS:
            drawn = without_drawing(getattr(fnp, name).init, **options)
            both = getattr(fpp, name)(**options), drawn, getattr(fnp, name)(**options, params=drawn.params)
        else:
            both = getattr(fpp, name)(**options), without_drawing(getattr(fnp, name), **options)
        assert all(transform.bijection == expected for transform in both)
    rest = {key: given[key] for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    in_order = [given.get(key) for key in parameters if key not in rest]
    expected = core(*in_order, **rest)
    theirs = getattr(fnp, name).init if name in LAYERS else getattr(fnp, name)
    assert getattr(fpp, name)(*in_order, **rest).bijection == expected
    assert without_drawing(theirs, *in_order, **rest).bijection == expected


def without_drawing(make, *args, **options):
    """The transform with the shapes of its weights in the place of the weights, since to draw them is to compile."""
    return jax.eval_shape(lambda key: make(key, *args, **options), jax.random.key(0))


def test_both_adapters_have_the_same_names():
    assert set(fnp.__all__) - set(fpp.__all__) == {"flow"}
    assert set(fpp.__all__) <= set(fnp.__all__)
    assert {*LAYERS, *NAMED_RECIPES} <= set(fpp.__all__)


@pytest.mark.parametrize("language", ADAPTERS)
def test_names_are_imported_and_listed_in_the_source(language):
    tree = ast.parse((FOLDER / language / "__init__.py").read_text())
    imported = [
        name.asname or name.name for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names
    ]
    (listed,) = (ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))
    assert sorted(imported) == sorted(listed)
    assert len(set(listed)) == len(listed)
    assert listed == ADAPTERS[language].__all__


@pytest.mark.parametrize("path", [path for language in ADAPTERS for path in (FOLDER / language).glob("*.py")], ids=str)
def test_no_definition_is_made_at_run_time(path):
    made = re.findall(r"globals\(\)|__doc__.* = |__signature__|functools\.wraps|\btype\(\w[^)]*, *\(", path.read_text())
    assert not made


@pytest.mark.parametrize("language", ADAPTERS)
@pytest.mark.parametrize("name", [*LAYERS, *NAMED_RECIPES])
def test_definition_and_documentation_stand_in_the_source(language, name):
    thing = getattr(ADAPTERS[language], name)
    source = inspect.getsource(thing)
    assert source.startswith(f"class {name}(" if name in LAYERS else f"def {name}(")
    doc = inspect.getdoc(thing)
    assert doc == ast.get_docstring(ast.parse(source).body[0])
    shape = r"``\(\.\.\., [^`]+\)``"
    assert re.search(rf"x and\s+y have the shape\s+{shape}|x has the shape\s+{shape},\s+y the shape\s+{shape}", doc)
    assert "``transform(x)``" in doc
    assert "Example:\n    >>> import" in doc
    assert f"flowppl.{language} import" in doc
    for argument in inspect.signature(thing).parameters:
        assert re.search(rf"^    {argument}: ", doc, re.MULTILINE), argument
    costs = re.findall(r"parallel|iterative|sequential", doc)
    bijection = (LAYERS.get(name) or NAMED_RECIPES[name])(*example_arguments(name))
    assert {bijection.forward_cost, bijection.inverse_cost} <= set(costs)
    annotations = inspect.get_annotations(thing.__init__ if name in LAYERS else thing)
    assert annotations.pop("return") == ("None" if name in LAYERS else "FlowTransform")
    assert set(annotations) == set(inspect.signature(thing).parameters)


def example_arguments(name):
    return {
        "Permute": [(1, 0)],
        "LowRankAffine": [3, 2],
        "Elementwise": [2, fp.Scale()],
        "Squeeze": [(1, 2, 2)],
        "Reshape": [(4,), (2, 2)],
        "Pixelwise": [(2, 1, 1), fp.LU(2)],
        "FactorOut": [(2, 1, 1), fp.Pixelwise((1, 1, 1), fp.LU(1))],
        "EmergingConvolution": [(2, 2, 2)],
        "ImageCoupling": [(2, 1, 1)],
        "ImageAutoregressive": [(1, 2, 2)],
        **{key: [(1, 4, 4)] for key in IMAGE_RECIPES},
    }.get(name, [2])


def prose(doc):
    """Documentation without its example and without what only one language has."""
    text = doc.split("Example:")[0]
    lines = [line for line in text.splitlines() if not re.match(r" +(key:|params:|ValueError: if ``params``)", line)]
    return "\n".join(lines)


@pytest.mark.parametrize("name", [*LAYERS, *NAMED_RECIPES])
def test_both_languages_say_the_same(name):
    ours, theirs = (prose(inspect.getdoc(getattr(module, name))) for module in ADAPTERS.values())
    assert ours == theirs


@pytest.mark.parametrize("name", LAYERS)
def test_named_transforms_can_be_pickled(name):
    arguments = example_arguments(name)
    ours = getattr(fpp, name)(*arguments)
    again = pickle.loads(pickle.dumps(ours))
    assert type(again) is getattr(fpp, name)
    assert again.bijection == ours.bijection
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True))
    theirs = getattr(fnp, name).init(jax.random.key(0), *arguments)
    again = pickle.loads(pickle.dumps(theirs))
    assert type(again) is type(theirs) is getattr(fnp, name)
    assert again == theirs


@pytest.mark.parametrize("language", ADAPTERS)
def test_an_editor_completes_the_names(language):
    code = f"import flowppl.{language}\nflowppl.{language}.pla"
    assert "planar" in [completion.name for completion in jedi.Script(code).complete()]
    every = {completion.name for completion in jedi.Script(code[: -len("pla")]).complete()}
    assert set(ADAPTERS[language].__all__) <= every


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    """Else one worker reads a file that another one is about to write."""
    jedi.settings.cache_directory = str(tmp_path_factory.mktemp("jedi"))


@pytest.fixture(scope="module", params=ADAPTERS)
def calls(request):
    """A script that calls every name in a line of its own, read once."""
    language = request.param
    lines = [f"import flowppl.{language}", *(f"flowppl.{language}.{name}()" for name in fpp.__all__)]
    return language, jedi.Script("\n".join(lines))


@pytest.mark.parametrize("name", fpp.__all__)
def test_an_editor_shows_arguments_and_documentation(calls, name):
    language, script = calls
    thing, line = getattr(ADAPTERS[language], name), 2 + fpp.__all__.index(name)
    end = len(f"flowppl.{language}.{name}")
    (found,) = script.help(line, end)
    assert found.docstring(raw=True).strip() == inspect.getdoc(thing).strip()
    if language == "numpyro" and name in ("Dequantized", "Flow", "Mixture"):
        return  # jedi shows no arguments of a dataclass with an __init__ of its own
    (signature,) = script.get_signatures(line, end + 1)
    parameters = inspect.signature(thing).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    shown = [p.name for p in signature.params]
    assert [argument for argument in shown if argument in named] == named
