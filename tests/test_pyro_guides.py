"""The automatic guide in Pyro."""

import copy
import functools
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, JitTrace_ELBO, Predictive, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoMultivariateNormal, AutoNormal, init_to_mean, init_to_value
from pyro.infer.reparam import ProjectedNormalReparam
from torch.distributions import SigmoidTransform, biject_to, constraints

import flowppl as fp
import flowppl.pyro
from flowppl._arrays import tree as _tree
from flowppl.inference.guides import guide_bijection, start_at
from flowppl.pyro import FlowTransform, log_weights
from flowppl.pyro.guides import unconstrained_zeros

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*:DeprecationWarning")

AutoFlow = functools.partial(flowppl.pyro.AutoFlow, init="point")  # the search of a start has tests of its own

SUPPORTS = {
    "real": lambda: dist.Normal(0.0, 1.0),
    "positive": lambda: dist.LogNormal(0.0, 1.0),
    "interval": lambda: dist.Uniform(-1.0, 3.0),
    "unit": lambda: dist.Beta(2.0, 2.0),
    "vector": lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1),
    "simplex": lambda: dist.Dirichlet(torch.ones(3)),
    "cholesky": lambda: dist.LKJCholesky(3, 1.0),
    "improper": lambda: dist.ImproperUniform(constraints.positive, (), (2,)),
}


def all_supports():
    for name, distribution in SUPPORTS.items():
        pyro.sample(name, distribution())


def one_latent():
    pyro.sample("z", dist.Gamma(2.0, 1.0))


def schools(y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    with pyro.plate("schools", 4):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=torch.tensor([1.0, 2.0, 0.0, 3.0]) if y is None else y)


OBSERVED = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


def conjugate(y=OBSERVED):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def run(model, guide, steps=300, lr=1e-2, elbo=None, args=()):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": lr}), elbo or Trace_ELBO(num_particles=8, vectorize_particles=True))
    return [svi.step(*args) for _ in range(steps)]


@pytest.mark.parametrize("flow", ["auto", "planar", "nice", "realnvp", "maf", fp.TriangularAffine])
@pytest.mark.parametrize("model", [schools, one_latent, all_supports])
def test_starts_exactly_at_its_gaussian(model, flow):
    guide = AutoFlow(model, flow, init_scale=0.3)
    guide.setup()
    posterior = guide.get_posterior()
    loc = guide._init_loc()
    points = loc + torch.randn(20, guide.latent_dim)
    expected = torch.distributions.Normal(loc, 0.3).log_prob(points).sum(-1)
    assert torch.allclose(posterior.log_prob(points), expected, atol=1e-10)


def test_starts_where_it_is_told():
    guide = AutoFlow(schools, init_loc_fn=init_to_value(values={"mu": torch.tensor(7.0), "tau": torch.tensor(0.5)}))
    guide.setup()
    draws = guide.sample_posterior(sample_shape=(4000,))
    assert abs(draws["mu"].mean() - 7) < 0.02
    assert abs(draws["mu"].std() - 0.1) < 0.01
    assert abs(draws["tau"].log().mean() - torch.tensor(0.5).log()) < 0.02


def test_setup_creates_the_parameters_for_an_optimiser():
    guide = AutoFlow(schools)
    parameters = guide.setup()
    assert sum(p.numel() for p in parameters.values()) == sum(p.numel() for p in guide.parameters()) > 0
    assert set(parameters) == set(dict(guide.named_parameters()))
    torch.optim.Adam(guide.parameters())


def test_fits_a_conjugate_posterior_to_its_evidence():
    guide = flowppl.pyro.AutoFlow(conjugate, fp.ElementwiseAffine)
    run(conjugate, guide, steps=100, lr=1e-3)
    evidence = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 1).log_prob(OBSERVED)
    weights = log_weights(conjugate, guide, num_samples=4000)
    assert weights.shape == (4000,)
    assert abs(weights.mean() - evidence) < 0.02
    median = guide.median()["z"]
    lower, upper = guide.quantiles([0.1587, 0.8413])["z"]
    assert abs(median - 3.5 / 4) < 0.05
    assert abs((upper - lower) / 2 - 0.5) < 0.05


@pytest.mark.parametrize("model", [schools, one_latent, all_supports])
def test_draws_lie_in_the_supports(model):
    guide = AutoFlow(model)
    run(model, guide, steps=3)
    draws = guide.sample_posterior(sample_shape=(5, 2))
    for name, site in guide.prototype_trace.iter_stochastic_nodes():
        assert draws[name].shape == (5, 2, *site["value"].shape)
        assert site["fn"].support.check(draws[name]).all()
    summaries = guide.quantiles([0.1, 0.9])
    for name, value in guide.median().items():
        assert summaries[name].shape == (2, *value.shape)
    assert set(draws) < set(Predictive(guide, num_samples=3)())


def test_density_of_the_guide_is_that_of_its_flow():
    """The guide's trace has the flow's density and the Jacobians of the constraints, and nothing else."""
    guide = AutoFlow(all_supports)
    guide.setup()
    trace = poutine.trace(guide).get_trace()
    trace.compute_log_prob()
    latent = trace.nodes["_AutoFlow_latent"]
    assert torch.allclose(latent["log_prob"], guide.get_posterior().log_prob(latent["value"]))
    start = 0
    for name, shape in guide._unconstrained_shapes.items():
        unconstrained = latent["value"][start : start + shape.numel()].reshape(shape)
        start += shape.numel()
        transform = biject_to(SUPPORTS[name]().support)
        value = transform(unconstrained)
        assert torch.allclose(trace.nodes[name]["value"], value)
        jacobian = -transform.log_abs_det_jacobian(unconstrained, value).sum()
        assert torch.allclose(trace.nodes[name]["log_prob"].sum(), jacobian)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is:FutureWarning")  # which Pyro calls
def test_compiled_elbo_trains_as_the_eager_one_does():
    losses = {}
    for elbo in (Trace_ELBO, JitTrace_ELBO):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = AutoFlow(schools, "iaf")
        guide.setup()
        options = {"num_particles": 8, "vectorize_particles": True, "max_plate_nesting": 1}
        if elbo is JitTrace_ELBO:
            options["ignore_jit_warnings"] = True
        pyro.set_rng_seed(1)
        losses[elbo] = torch.tensor(run(schools, guide, steps=200, elbo=elbo(**options)))
    for trace in losses.values():
        assert trace.isfinite().all()
        assert trace[-20:].mean() < trace[:20].mean() - 1
    assert abs(losses[Trace_ELBO][-100:].mean() - losses[JitTrace_ELBO][-100:].mean()) < 0.5


def test_particles_plates_and_scale_agree_with_a_loop():
    """Vectorised particles estimate the same ELBO as a loop, with the factor of poutine.scale."""
    guide = AutoFlow(schools, fp.TriangularAffine)
    guide.setup()
    together = Trace_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=1)
    loop = Trace_ELBO(num_particles=500).loss(schools, guide)
    scaled = together.loss(poutine.scale(schools, 2.0), poutine.scale(guide, 2.0))
    assert abs(together.loss(schools, guide) - loop) < 1
    assert abs(scaled - 2 * loop) < 2


def test_subsampled_data_is_scored_with_its_scale():
    data = torch.arange(20.0)

    def model(size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 20, subsample_size=size) as index:
            pyro.sample("y", dist.Normal(z, 10.0), obs=data[index])

    guide = AutoFlow(model, fp.ElementwiseAffine)
    guide.setup(20)
    elbo = Trace_ELBO(num_particles=400)
    assert abs(elbo.loss(model, guide, 20) - elbo.loss(model, guide, 5)) < 1.5


def test_guides_part_of_a_model():
    guide = AutoGuideList(schools)
    guide.append(AutoFlow(poutine.block(schools, hide=["theta"])))
    guide.append(AutoNormal(poutine.block(schools, expose=["theta"])))
    losses = torch.tensor(run(schools, guide, steps=200))
    assert losses.isfinite().all()
    assert losses[-20:].mean() < losses[:20].mean()
    assert set(guide.median()) == {"mu", "tau", "theta"}


def test_discrete_sites_are_enumerated_beside_it():
    def model(infer=None):
        weight = pyro.sample("weight", dist.Beta(1.0, 1.0))
        with pyro.plate("data", 6):
            kind = pyro.sample("kind", dist.Bernoulli(weight), infer=infer or {"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(4 * kind, 1.0), obs=torch.tensor([0.0, 0.1, 4.0, 4.2, 3.9, -0.3]))

    for guide in (AutoFlow(poutine.block(model, hide=["kind"])), AutoFlow(model)):
        losses = run(model, guide, steps=50, elbo=TraceEnum_ELBO(max_plate_nesting=1))
        assert torch.tensor(losses).isfinite().all()
    with pytest.raises(ValueError, match=r"discrete: kind.*enumerate.*block"):
        AutoFlow(model)({"enumerate": None})


def test_trains_the_models_own_parameters():
    def model():
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, scale), obs=torch.tensor(8.0))

    run(model, AutoFlow(model, fp.ElementwiseAffine), steps=200, lr=5e-2)
    assert pyro.param("scale") > 3


def test_works_in_double_precision_under_a_single_precision_default():
    torch.set_default_dtype(torch.float32)
    try:

        def model():
            z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=torch.tensor(1.0, dtype=torch.float64))

        guide = AutoFlow(model)
        run(model, guide, steps=3)
        assert guide.sample_posterior()["z"].dtype == torch.float64
        assert {p.dtype for p in guide.parameters()} == {torch.float64}
    finally:
        torch.set_default_dtype(torch.float64)


def test_loads_copies_and_pickles_without_running_the_model():
    guide = AutoFlow(schools)
    run(schools, guide, steps=5)
    fresh = AutoFlow(schools)
    fresh.setup()
    fresh.load_state_dict(guide.state_dict(), strict=True)

    def draw(g):
        torch.manual_seed(5)
        return g.sample_posterior(sample_shape=(3,))["theta"]

    for other in (fresh, copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        assert torch.equal(draw(other), draw(guide))
    assert torch.isfinite(torch.tensor(run(schools, guide, steps=2))).all()  # the original kept its model
    assert torch.isfinite(torch.tensor(run(schools, copy.deepcopy(guide), steps=2))).all()


def test_one_dimensional_guides_are_not_gaussian_by_force():
    guide = AutoFlow(one_latent)
    losses = run(one_latent, guide, steps=50)
    assert torch.tensor(losses).isfinite().all()
    assert guide.sample_posterior(sample_shape=(3,))["z"].shape == (3,)


def local(size=2):
    with pyro.plate("data", 10, subsample_size=size):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def empty():
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))


def moving():
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    pyro.sample("z", dist.Uniform(0.0, tau))


@pytest.mark.parametrize(
    ("model", "flow", "message"),
    [
        (local, "auto", r"'z' is local to the plate 'data', subsampled \(2 of 10\)"),
        (empty, "auto", "no latent variables"),
        (moving, "auto", "supports of these sites depend on other latents: z"),
        (schools, "realnpv", "unknown flow 'realnpv'; known flows are .*realnvp"),
        (schools, fp.Planar(3), r"6 unconstrained latent dimensions, but the flow maps events of shape \(3,\)"),
        (schools, lambda dim: fp.realnvp(dim, context_dim=2), "takes no context"),
    ],
)
def test_refuses_what_it_cannot_do(model, flow, message):
    guide = AutoFlow(model, flow)
    for _ in range(2):  # a failed call leaves the guide as it was
        with pytest.raises(ValueError, match=message):
            guide()


def test_supports_that_depend_on_other_latents_are_told_from_those_that_do_not():
    """Wherever the guide starts, and for a wide simplex in single precision."""
    with pytest.raises(ValueError, match="supports of these sites depend on other latents: z"):
        AutoFlow(moving, init_loc_fn=init_to_mean).setup()
    wide = dist.Dirichlet(torch.ones(1000, dtype=torch.float32))
    assert AutoFlow(lambda: pyro.sample("z", wide), "planar").setup()


def test_other_mistakes_say_what_to_do():
    with pytest.raises(TypeError, match="a name, a bijection or a function"):
        AutoFlow(schools, 3)()
    for model in (None, 0, "model"):
        with pytest.raises(TypeError, match="AutoFlow: model must be a function with sample sites, got"):
            AutoFlow(model)
    with pytest.raises(TypeError, match=r"flow\(6\) is int"):
        AutoFlow(schools, lambda dim: dim)()
    with pytest.raises(ValueError, match="init_scale must be positive"):
        AutoFlow(schools, init_scale=0.0)
    for method in ("median", "get_posterior", "get_transform", "sample_posterior", "get_base_dist"):
        with pytest.raises(RuntimeError, match="setup"):
            getattr(AutoFlow(schools), method)()


def test_starts_on_the_device_of_the_model():
    fn = dist.Normal(torch.zeros(2, 3, device="meta", dtype=torch.float32), 1.0, validate_args=False).to_event(1)
    for each in (fn, dist.TransformedDistribution(fn.mask(True), [SigmoidTransform()], validate_args=False)):
        origin = unconstrained_zeros({"fn": each})
        assert (origin.device.type, origin.dtype, origin.shape) == ("meta", torch.float32, (2, 3))
    bijection = guide_bijection("planar", 4)
    params = FlowTransform(bijection).to("meta").weights.tree()
    loc = torch.zeros(4, device="meta")
    started = start_at(bijection, params, loc, loc + 0.1, fixed=False)
    assert {leaf.device.type for _, leaf in _tree.leaves(started)} == {"meta"}


def test_every_guide_trains_its_own_parameters():
    """Also the second one of a session, a copy, and the first again after them."""
    first, second = AutoFlow(schools), AutoFlow(schools)
    run(schools, first, steps=3)
    for guide in (second, copy.deepcopy(first), first):
        before = {name: parameter.detach().clone() for name, parameter in guide.setup().items()}
        others = [p.detach().clone() for g in (first, second) if g is not guide for p in g.setup().values()]
        run(schools, guide, steps=3)
        for name, parameter in guide.named_parameters():
            is_fixed = name.startswith("flow.transform.weights.2.")  # where a search puts the start
            assert not parameter.numel() or torch.equal(before[name], parameter) == is_fixed
        unmoved = [p for g in (first, second) if g is not guide for p in g.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(others, unmoved, strict=True))


def line(x, y=None):
    a = pyro.sample("a", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(a * x, 1.0), obs=y)


@pytest.mark.parametrize("parallel", [False, True])
def test_predicts_what_was_left_out_as_the_hosts_guides_do(parallel):
    """Data that the guide was trained with, at new places, of another number."""
    x, new = torch.linspace(0.0, 1.0, 6), torch.ones(4)
    shapes = []
    for guide in (AutoFlow(line, fp.ElementwiseAffine), AutoMultivariateNormal(line)):
        guide(x, 2 * x)
        draws = Predictive(line, guide=guide, num_samples=5, parallel=parallel)(new)
        assert draws["y"].isfinite().all()
        shapes.append({name: value.shape for name, value in draws.items()})
        assert Predictive(guide, num_samples=5, parallel=parallel)(new)["a"].shape == (5,)
    assert shapes[0] == shapes[1]


def test_latents_that_changed_or_went_are_refused():
    def model(size, a=None):
        with pyro.plate("plate", size):
            pyro.sample("a", dist.Normal(0.0, 1.0), obs=a)
        pyro.sample("b", dist.Normal(0.0, 1.0))

    guide = AutoFlow(model, "planar")
    guide(3)
    with pytest.raises(ValueError, match=r"site 'a' had the unconstrained shape \(3,\) and now has \(4,\)"):
        guide(4)
    with pytest.raises(ValueError, match=r"site 'a' was a latent of the model .* and is none"):
        guide(3, torch.zeros(3))


PARTIAL = torch.tensor([1.0, 2.0, 0.0, 4.0], dtype=torch.float64), torch.tensor([True, True, False, True])


def imputed(x, seen):
    m = pyro.sample("m", dist.Normal(0.0, 10.0))
    with pyro.plate("data", 4):
        return pyro.sample("x", dist.Normal(m, 1.0), obs=x, obs_mask=seen)


def test_observed_entries_of_an_imputed_site_are_not_the_guides(tmp_path):
    guide = flowppl.pyro.AutoFlow(imputed, fp.ElementwiseAffine)
    guide.setup(*PARTIAL)
    assert guide.latent_dim == 2
    evidence = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 100).log_prob(PARTIAL[0][PARTIAL[1]])
    assert abs(evidence - -7.97) < 0.001
    weights = log_weights(imputed, guide, *PARTIAL, num_samples=2000)
    assert evidence - 0.2 < weights.mean() < evidence + 0.05
    assert abs(weights.exp().mean().log() - evidence) < 0.05
    elbo = Trace_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=1)
    assert abs(elbo.loss(imputed, guide, *PARTIAL) + weights.mean()) < 0.1
    draws = guide.sample_posterior(sample_shape=(2000,))
    assert abs(draws["x_unobserved"][:, 2].mean() - 7 / 3) < 0.2
    assert (guide.median()["x_unobserved"][[0, 1, 3]] == 0).all()
    assert Predictive(imputed, guide=guide, num_samples=3)(*PARTIAL)["x"].shape == (3, 4)
    with pytest.raises(ValueError, match=r"other members .* are masked out of the sites x_unobserved"):
        guide(PARTIAL[0], ~PARTIAL[1])
    fp.save(tmp_path / "guide", guide)
    torch.manual_seed(0)
    expected = guide.sample_posterior(sample_shape=(2,))
    torch.manual_seed(0)
    assert all(v.equal(expected[k]) for k, v in fp.load(tmp_path / "guide").sample_posterior(sample_shape=(2,)).items())


def test_masked_members_of_a_bounded_latent_have_no_density():
    """The evidence of a model without data is 1."""

    def model():
        with pyro.plate("plate", 3), poutine.mask(mask=torch.tensor([True, False, True])):
            pyro.sample("p", dist.Beta(torch.tensor(2.0), 2.0))

    guide = AutoFlow(model, fp.ElementwiseAffine, init_scale=1.0)
    guide.setup()
    assert guide.latent_dim == 2
    for particles in (1, 2):  # by the density of the flow, and by traces
        fn = guide if particles == 1 else lambda: guide()
        assert abs(log_weights(model, fn, num_samples=4000).exp().mean().log()) < 0.05


def test_a_model_all_of_whose_latents_are_masked_is_refused():
    def model():
        with poutine.mask(mask=False):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"no latent variables: .* masked out"):
        AutoFlow(model).setup()


def test_a_masked_prior_that_has_a_density_by_other_means_is_the_guides():
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).mask(torch.tensor([True, False])))
        pyro.sample("y", dist.Normal(z[1], 1.0), obs=torch.tensor(3.0))

    guide = flowppl.pyro.AutoFlow(model, fp.ElementwiseAffine)
    guide.setup()
    assert guide.latent_dim == 2
    assert torch.allclose(guide.get_transform()(torch.zeros(2)), torch.tensor([0.0, 3.0]), atol=1e-4)


def test_serves_a_reparametrised_site_whose_own_support_cannot_be_mapped():
    def model():
        with pyro.plate("plate", 2):
            d = pyro.sample("d", dist.ProjectedNormal(torch.tensor([1.0, 2.0, 0.0])))
        pyro.sample("y", dist.Normal(d[..., 0].sum(-1), 0.1), obs=torch.tensor(1.0))

    reparametrised = poutine.reparam(model, {"d": ProjectedNormalReparam()})
    guide = flowppl.pyro.AutoFlow(reparametrised, "planar")
    assert torch.tensor(run(reparametrised, guide, steps=3)).isfinite().all()
    assert guide.median()["d_normal"].shape == (2, 3)
    with pytest.raises(ValueError, match="ProjectedNormalReparam"):
        AutoFlow(model).setup()


@pytest.mark.filterwarnings("ignore:Singular sample detected")
def test_latents_and_data_without_real_numbers_are_refused_by_name():
    def wishart():
        pyro.sample("w", dist.Wishart(torch.tensor(4.0), torch.eye(3)))

    def wave():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0, validate_args=False), obs=torch.tensor([1 + 1j]))

    with pytest.raises(ValueError, match=r"site 'w' has the support PositiveDefinite.*LKJCholesky"):
        AutoFlow(wishart).setup()
    with pytest.raises(TypeError, match=r"site 'y' has complex values \(torch.complex"):
        AutoFlow(wave).setup()


@pytest.mark.parametrize(
    "flow", [flowppl.pyro.realnvp, flowppl.pyro.Planar, lambda dim: flowppl.pyro.Flow(fp.nice(dim))]
)
def test_takes_a_helper_of_the_adapter_as_its_flow(flow):
    guide = AutoFlow(schools, flow)
    guide.setup()
    assert guide.sample_posterior()["theta"].shape == (4,)


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        (lambda: flowppl.pyro.planar(6), r"a FlowTransform with weights of its own.* flow=transform.bijection"),
        (lambda: flowppl.pyro.Flow(fp.planar(6)), r"a Flow with weights of its own.* flow=transform.bijection"),
        (lambda: dist.transforms.ExpTransform(), r"flow=flowppl.pyro.Wrap\(transform, 6\)"),
        (lambda: dist.transforms.affine_coupling, r"flow=flowppl.pyro.Wrap\(affine_coupling\(6\), 6\)"),
    ],
)
def test_a_transform_as_flow_names_the_one_change(flow, message):
    with pytest.raises(TypeError, match=message):
        AutoFlow(schools, flow()).setup()


@pytest.mark.parametrize("wrapper", [fp.Damped, fp.Invert, lambda bijection: fp.Repeat(bijection, 2)])
def test_a_recipe_keeps_what_is_around_its_layers(wrapper):
    assert guide_bijection(lambda dim: wrapper(fp.Planar(dim)), 3).bijections[0] == wrapper(fp.Planar(3))


def test_a_flow_of_a_wrong_name_is_told_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'realnvp'"):
        AutoFlow(schools, "realnpv").setup()


def test_summaries_are_used_as_those_of_the_hosts_guides():
    guides = AutoFlow(schools, "planar"), AutoMultivariateNormal(schools)
    for guide in guides:
        guide()
    for levels in ([0.05, 0.95], (0.5,)):
        ours, theirs = (guide.quantiles(levels) for guide in guides)
        assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert {k: v.shape for k, v in guides[0].median().items()} == {k: v.shape for k, v in guides[1].median().items()}
    assert guides[0].quantiles(torch.tensor([0.1, 0.9]))["mu"].shape == (2,)
    assert {k: v.shape for k, v in guides[0]().items()} == {k: v.shape for k, v in guides[1]().items()}


def test_many_draws_are_made_in_parts_and_are_the_same(monkeypatch):
    """A million draws at once take the memory of all that the layers see of them."""

    def model():
        pyro.sample("scale", dist.HalfNormal(torch.ones(3)).to_event(1))

    guide = AutoFlow(model, init="point")
    guide.setup()
    pyro.set_rng_seed(0)
    whole = guide.sample_posterior(sample_shape=(5, 16))["scale"]
    monkeypatch.setattr("flowppl.pyro.guides.MANY_DRAWS", 32)
    pyro.set_rng_seed(0)
    parts = guide.sample_posterior(sample_shape=(5, 16))["scale"]
    assert parts.shape == whole.shape == (5, 16, 3)
    torch.testing.assert_close(parts, whole)
