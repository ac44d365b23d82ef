"""What the adapters take from their hosts beyond documented names: a new version of a host fails here first."""

import ast
import inspect
import pathlib

import numpyro
import numpyro.distributions
import numpyro.infer.autoguide
import pyro
import pyro.distributions
import pyro.infer.autoguide
import pytest
import torch
from numpyro import handlers
from pyro import poutine

import flowppl.numpyro
import flowppl.numpyro._host
import flowppl.pyro
import flowppl.pyro._host

HOSTS = {"pyro": flowppl.pyro._host, "numpyro": flowppl.numpyro._host}

# Modules whose names the hosts document; from others _host.py alone may import.
DOCUMENTED = {
    "jax.flatten_util",
    "jax.lax",
    "jax.sharding",
    "jax.typing",
    "numpyro",
    "numpyro.contrib.funsor",
    "numpyro.contrib.module",
    "numpyro.distributions",
    "numpyro.distributions.flows",
    "numpyro.distributions.transforms",
    "numpyro.infer",
    "numpyro.infer.autoguide",
    "numpyro.infer.elbo",
    "numpyro.infer.initialization",
    "numpyro.infer.util",
    "numpyro.optim",
    "pyro",
    "pyro.distributions",
    "pyro.infer",
    "pyro.infer.autoguide",
    "pyro.infer.autoguide.initialization",
    "pyro.infer.elbo",
    "pyro.infer.importance",
    "pyro.optim",
    "pyro.optim.lr_scheduler",
    "pyro.poutine.messenger",
    "pyro.poutine.runtime",
    "pyro.poutine.util",
    "torch.distributions",
    "torch.optim.lr_scheduler",
    "torch.utils.data",
}


def pyro_model():
    with pyro.plate("plate", 2):
        return pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))


def numpyro_model():
    with numpyro.plate("plate", 2):
        return numpyro.sample("z", numpyro.distributions.Normal(0.0, 1.0))


def fused_adam():
    weight = torch.ones(1, requires_grad=True)
    weight.grad = torch.ones(1)
    adam = torch.optim.Adam([weight], lr=0.1, fused=True)
    adam.found_inf = torch.ones((), dtype=torch.float32)
    return adam


def test_a_fused_adam_leaves_out_a_step_that_it_is_told_to():
    adam = fused_adam()
    (weight,) = adam.param_groups[0]["params"]
    adam.step()
    assert weight == 1
    assert adam.state[weight]["step"] == 0
    adam.found_inf = torch.zeros((), dtype=torch.float32)
    adam.step()
    assert weight.item() == pytest.approx(0.9)


def pyro_examples():
    guide = pyro.infer.autoguide.AutoMultivariateNormal(pyro_model)
    guide()
    return {
        "AutoContinuous": [guide, pyro.infer.autoguide.AutoGuideList(pyro_model)],
        "ParamStoreDict": [pyro.get_param_store()],
        "PyroLRScheduler": [pyro.optim.CosineAnnealingLR({"optimizer": torch.optim.Adam, "optim_args": {}})],
        "PyroModule": [guide],
        "PyroOptim": [pyro.optim.Adam({})],
        "LogRing": [flowppl.pyro._host.LogRing()],
        "Trace_ELBO": [pyro.infer.Trace_ELBO()],
        "Messenger": [poutine.replay(trace=poutine.trace(pyro_model).get_trace()), poutine.trace()],
        "MaskedDistribution": [pyro.distributions.Normal(0.0, 1.0).mask(False)],
        "Distribution": [pyro.distributions.Normal(0.0, 1.0)],
        "Transform": [torch.distributions.ExpTransform(cache_size=1)],
        "Module": [torch.nn.Linear(1, 1)],
        "Adam": [fused_adam()],
        "Tensor": [torch.zeros(())],
    }


def numpyro_examples():
    guide = numpyro.infer.autoguide.AutoMultivariateNormal(numpyro_model)
    handlers.seed(guide, 0)()
    return {
        "AutoContinuous": [guide],
        "Trace_ELBO": [numpyro.infer.Trace_ELBO()],
        "Messenger": [handlers.trace()],
        "MaskedDistribution": [numpyro.distributions.Normal(0.0, 1.0).mask(False)],
        "Distribution": [numpyro.distributions.Normal(0.0, 1.0)],
        "Transform": [numpyro.distributions.transforms.ExpTransform()],
    }


EXAMPLES = {"pyro": pyro_examples, "numpyro": numpyro_examples}
SOURCES = {
    adapter: {
        path: ast.parse(path.read_text())
        for path in (pathlib.Path(flowppl.__file__).parent / adapter).glob("*.py")
        if path.name != "_host.py"
    }
    for adapter in HOSTS
}


def has(example, name):
    return hasattr(example, name) or name in vars(type(example))


@pytest.mark.parametrize("adapter", HOSTS)
def test_all_that_is_taken_is_there(adapter):
    host, examples = HOSTS[adapter], EXAMPLES[adapter]()
    for name in host.NAMES:
        assert hasattr(host, name), name
    for kind, members in host.MEMBERS.items():
        for name in members:
            assert any(has(example, name) for example in examples[kind.__name__]), f"{kind.__name__}.{name}"
    for reasons in (host.NAMES, host.SITE_KEYS, *host.MEMBERS.values()):
        assert all(reasons.values())


@pytest.mark.parametrize("adapter", HOSTS)
def test_every_name_that_is_imported_has_its_reason(adapter):
    imports = (n for n in ast.walk(ast.parse(inspect.getsource(HOSTS[adapter]))) if isinstance(n, ast.ImportFrom))
    assert {alias.name for node in imports for alias in node.names if alias.asname} == set(HOSTS[adapter].NAMES)


@pytest.mark.parametrize("adapter", HOSTS)
def test_no_other_file_imports_what_is_not_documented(adapter):
    for path, tree in SOURCES[adapter].items():
        for node in ast.walk(tree):
            host = isinstance(node, ast.ImportFrom) and node.module.partition(".")[0]
            if host in ("pyro", "torch", "numpyro", "jax"):
                assert node.module in DOCUMENTED, f"{path}: {node.module}"
                assert not any(alias.name.startswith("_") for alias in node.names), f"{path}: {node.module}"


@pytest.mark.parametrize("adapter", HOSTS)
def test_no_file_uses_or_overrides_a_private_member_that_is_not_listed(adapter):
    listed = {name for members in HOSTS[adapter].MEMBERS.values() for name in members}
    examples = [example for group in EXAMPLES[adapter]().values() for example in group]
    nodes = [(path, node) for path, tree in SOURCES[adapter].items() for node in ast.walk(tree)]
    functions = {node.name for _, node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    stored = {n.attr for _, n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    fields = {n.target.id for _, n in nodes if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    own = functions | stored | fields | {"_replace"}  # which a named tuple documents
    used = [(path, node, node.attr) for path, node in nodes if isinstance(node, ast.Attribute)]
    bodies = [(path, part) for path, node in nodes if isinstance(node, ast.ClassDef) for part in node.body]
    defined = [(path, node, node.name) for path, node in bodies if isinstance(node, ast.FunctionDef)]
    for path, node, name in used + defined:
        if name.startswith("_") and not name.startswith("__"):
            is_host = any(has(example, name) for example in examples)
            assert name in listed or (name in own and not is_host), f"{path.name}:{node.lineno}: {name}"


def test_sites_hold_what_is_read_from_them():
    trace = poutine.trace(pyro_model).get_trace()
    assert flowppl.pyro._host.SITE_KEYS.keys() <= trace.nodes["z"].keys()
    (frame,) = trace.nodes["z"]["cond_indep_stack"]
    assert (frame.name, frame.dim, frame.size, frame.vectorized) == ("plate", -1, 2, True)
    assert frame._fields[:3] == ("name", "dim", "size")
    trace.compute_score_parts()
    assert flowppl.pyro._host.SCORE_PARTS.keys() <= set(trace.nodes["z"]["score_parts"]._fields)
    site = handlers.trace(handlers.seed(numpyro_model, 0)).get_trace()["z"]
    assert flowppl.numpyro._host.SITE_KEYS.keys() <= site.keys()
    (frame,) = site["cond_indep_stack"]
    assert frame == ("plate", -1, 2)


def test_the_hosts_call_what_is_overridden():
    """In the order that objectives and guides rely on."""
    calls = []

    class Watch(poutine.messenger.Messenger):
        def _pyro_sample(self, msg):
            calls.append(("before", msg["value"] is None))

        def _pyro_post_sample(self, msg):
            calls.append(("after", msg["value"] is None))

    class Look(flowppl.numpyro._host.Messenger):
        def process_message(self, msg):
            calls.append(("before", msg["value"] is None))

        def postprocess_message(self, msg):
            calls.append(("after", msg["value"] is None))

    with Watch():
        pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
    with handlers.seed(rng_seed=0), Look():
        numpyro.sample("z", numpyro.distributions.Normal(0.0, 1.0))
    assert calls == [("before", True), ("after", False)] * 2
    assert flowppl.pyro._host.param_with_module_name("guide", "flow.weight") == "guide$$$flow.weight"
