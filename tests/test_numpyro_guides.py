"""The automatic guide in NumPyro."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import multivariate_normal
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import biject_to
from numpyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, init_to_uniform, init_to_value
from numpyro.infer.autoguide import AutoGuideList, AutoMultivariateNormal, AutoNormal
from numpyro.infer.reparam import ProjectedNormalReparam
from numpyro.infer.util import log_density

import flowppl as fp
import flowppl.numpyro
from flowppl.numpyro import log_weights

AutoFlow = functools.partial(flowppl.numpyro.AutoFlow, init="point")  # the search of a start has tests of its own

SUPPORTS = {
    "real": lambda: dist.Normal(0.0, 1.0),
    "positive": lambda: dist.LogNormal(0.0, 1.0),
    "interval": lambda: dist.Uniform(-1.0, 3.0),
    "unit": lambda: dist.Beta(2.0, 2.0),
    "vector": lambda: dist.Normal(jnp.zeros(2), 1.0).to_event(1),
    "simplex": lambda: dist.Dirichlet(jnp.ones(3)),
    "cholesky": lambda: dist.LKJCholesky(3, 1.0),
    "improper": lambda: dist.ImproperUniform(dist.constraints.positive, (), (2,)),
}


def all_supports():
    for name, distribution in SUPPORTS.items():
        numpyro.sample(name, distribution())


def one_latent():
    numpyro.sample("z", dist.Gamma(2.0, 1.0))


def schools(y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("schools", 4):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=jnp.array([1.0, 2.0, 0.0, 3.0]) if y is None else y)


OBSERVED = np.array([1.0, 2.0, 0.5])


def conjugate(y=OBSERVED):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.deterministic("double", 2 * z)
    with numpyro.plate("data", 3):
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def run(model, guide, steps=300, lr=1e-2, elbo=None, args=()):
    adam = numpyro.optim.Adam(lambda i: lr * (1 + jnp.cos(jnp.pi * i / steps)) / 2)
    svi = SVI(model, guide, adam, elbo or Trace_ELBO(num_particles=8))
    return svi.run(jax.random.key(0), steps, *args, progress_bar=False)


FLOWS = ["auto", "planar", "nice", "realnvp", "maf", fp.TriangularAffine]


@pytest.mark.parametrize(("model", "flow"), [*((schools, flow) for flow in FLOWS), (one_latent, "auto")])
def test_starts_exactly_at_its_gaussian(model, flow):
    guide = AutoFlow(model, flow, init_scale=0.3)
    params = guide.setup()
    posterior = guide.get_posterior(params)
    loc = params["auto_flow"]["1"]["loc"]
    points = loc + jax.random.normal(jax.random.key(0), (20, guide.latent_dim))
    expected = dist.Normal(loc, 0.3).log_prob(points).sum(-1)
    np.testing.assert_allclose(jax.jit(lambda d, z: d.log_prob(z))(posterior, points), expected, atol=1e-10)


def test_starts_where_it_is_told():
    guide = AutoFlow(schools, init_loc_fn=init_to_value(values={"mu": 7.0, "tau": 0.5}))
    draws = guide.sample_posterior(jax.random.key(1), guide.setup(), sample_shape=(4000,))
    assert abs(draws["mu"].mean() - 7) < 0.02
    assert abs(draws["mu"].std() - 0.1) < 0.01
    assert abs(jnp.log(draws["tau"]).mean() - np.log(0.5)) < 0.02


def test_fits_a_conjugate_posterior_to_its_evidence():
    guide = AutoFlow(conjugate)
    params = run(conjugate, guide, steps=2000).params
    y = jnp.array([1.0, 2.0, 0.5])
    evidence = multivariate_normal.logpdf(y, jnp.zeros(3), jnp.eye(3) + 1)
    weights = log_weights(jax.random.key(1), conjugate, guide, params, num_samples=4000)
    assert weights.shape == (4000,)
    assert abs(weights.mean() - evidence) < 0.02
    assert abs(guide.median(params)["z"] - 3.5 / 4) < 0.05
    lower, upper = guide.quantiles(params, [0.1587, 0.8413])["z"]
    assert abs((upper - lower) / 2 - 0.5) < 0.05


def test_draws_lie_in_the_supports_with_the_density_of_the_flow():
    """The guide's trace has the flow's density and the Jacobians of the constraints, and nothing else."""
    guide = AutoFlow(all_supports, init_loc_fn=init_to_uniform)  # compiles sooner than the medians of all priors
    params = guide.setup()

    @jax.jit
    def everything(params):
        """In one program: the operations one by one are two hundred."""
        draws = guide.sample_posterior(jax.random.key(1), params, sample_shape=(5, 2))
        trace = handlers.trace(handlers.substitute(all_supports, guide.median(params))).get_trace()
        inside = {name: trace[name]["fn"].support(value).all() for name, value in draws.items()}
        medians = {name: trace[name]["value"] for name in draws}
        log_q, trace = log_density(handlers.seed(guide, 0), (), {}, params)
        latent = trace["_auto_latent"]["value"]
        expected = guide.get_posterior(params).log_prob(latent)
        values = {}
        for name, unconstrained in guide._unpack_latent(latent).items():
            transform = biject_to(SUPPORTS[name]().support)
            value = transform(unconstrained)
            values[name] = (trace[name]["value"], value)
            expected -= transform.log_abs_det_jacobian(unconstrained, value).sum()
        return draws, inside, medians, guide.quantiles(params, [0.1, 0.9]), values, log_q, expected

    draws, inside, medians, summaries, values, log_q, expected = everything(params)
    for name, value in draws.items():
        assert value.shape == (5, 2, *medians[name].shape)
        assert inside[name]
        assert summaries[name].shape == (2, *medians[name].shape)
    assert values.keys() == draws.keys()
    for found, known in values.values():
        np.testing.assert_allclose(found, known)
    np.testing.assert_allclose(log_q, expected, rtol=1e-10)


def test_deterministic_sites_need_the_arguments_of_the_model():
    guide = AutoFlow(conjugate)
    params = guide.setup(np.ones(3))
    without = guide.sample_posterior(jax.random.key(1), params, sample_shape=(5, 2))
    assert set(without) == {"z"}
    draws = guide.sample_posterior(jax.random.key(1), params, np.ones(3), sample_shape=(5, 2))
    np.testing.assert_allclose(draws["double"], 2 * draws["z"])
    guide = AutoFlow(conjugate)
    assert "double" in guide.sample_posterior(jax.random.key(1), guide.setup())


def bounded(y):
    z = numpyro.sample("z", dist.Uniform(-10.0, 10.0).expand([2]))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def test_starts_under_vmap_and_jit_and_leaks_no_tracer():
    keys, y = jax.random.split(jax.random.key(0), 3), jnp.ones(2)
    guide = AutoFlow(bounded, fp.Planar)
    svi = SVI(bounded, guide, numpyro.optim.Adam(1e-2), Trace_ELBO())
    with jax.checking_leaks():
        state = jax.jit(jax.vmap(svi.init, (0, None)))(keys, y)
    assert pickle.loads(pickle.dumps(guide)).latent_dim == 2
    weights = svi.get_params(state)["auto_flow"]["0"]["w"]
    assert weights.shape == (3, 1, 2)
    assert jnp.abs(weights[0] - weights[1]).max() > 0  # one draw for each key
    jax.jit(svi.update)(jax.tree.map(lambda leaf: leaf[0], state), y)


def test_particles_and_scale():
    guide = AutoFlow(schools)
    params = guide.setup()
    loss = jax.jit(Trace_ELBO(num_particles=2000).loss, static_argnums=(2, 3))
    plain = loss(jax.random.key(0), params, schools, guide)
    scaled = loss(jax.random.key(0), params, handlers.scale(schools, scale=2.0), handlers.scale(guide, scale=2.0))
    np.testing.assert_allclose(scaled, 2 * plain, rtol=1e-9)
    np.testing.assert_allclose(plain, -log_weights(jax.random.key(1), schools, guide, params).mean(), atol=1)


def test_subsampled_data_is_scored_with_its_scale():
    data = jnp.arange(20.0)

    def model(size):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 20, subsample_size=size) as index:
            numpyro.sample("y", dist.Normal(z, 10.0), obs=data[index])

    guide = AutoFlow(model)
    params = guide.setup(20)
    full, part = (
        log_weights(jax.random.key(1), model, guide, params, num_samples=4000, size=size).mean() for size in (20, 5)
    )
    assert abs(full - part) < 1.5


def test_guides_part_of_a_model():
    guide = AutoGuideList(schools)
    guide.append(AutoFlow(handlers.block(schools, hide=["theta"]), prefix="globals"))
    guide.append(AutoNormal(handlers.block(schools, hide=["mu", "tau"]), prefix="locals"))
    result = run(schools, guide, steps=200)
    assert jnp.isfinite(result.losses).all()
    assert result.losses[-20:].mean() < result.losses[:20].mean()
    assert set(guide.median(result.params)) == {"mu", "tau", "theta"}


def test_discrete_sites_are_refused_by_name():
    def model():
        weight = numpyro.sample("weight", dist.Beta(1.0, 1.0))
        with numpyro.plate("data", 6):
            kind = numpyro.sample("kind", dist.Bernoulli(weight))
            numpyro.sample("y", dist.Normal(4.0 * kind, 1.0), obs=jnp.array([0.0, 0.1, 4.0, 4.2, 3.9, -0.3]))

    with pytest.raises(ValueError, match=r"discrete: kind.*enumerate.*block"):
        AutoFlow(model).setup()
    assert AutoFlow(handlers.block(model, hide=["kind"])).setup()


def test_trains_the_models_own_parameters():
    def model():
        scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, scale), obs=8.0)

    assert run(model, AutoFlow(model), steps=200, lr=5e-2).params["scale"] > 3


def test_a_pickled_guide_draws_the_same_without_the_data():
    guide = AutoFlow(schools)
    y = jnp.array([1.0, 2.0, 0.0, 3.0])
    params = run(schools, guide, steps=5, args=(y,)).params
    content = pickle.dumps((guide, params))
    assert not any(np.array_equal(leaf, y) for leaf in jax.tree.leaves(vars(guide)) if hasattr(leaf, "shape"))
    other, loaded = pickle.loads(content)
    assert set(Predictive(guide, params=params, num_samples=3)(jax.random.key(3))) >= {"mu", "tau", "theta"}
    draws = guide.sample_posterior(jax.random.key(3), params, sample_shape=(3,))
    np.testing.assert_array_equal(
        draws["theta"], other.sample_posterior(jax.random.key(3), loaded, sample_shape=(3,))["theta"]
    )


def local(size=2):
    with numpyro.plate("data", 10, subsample_size=size):
        numpyro.sample("z", dist.Normal(0.0, 1.0))


def hidden_plate():
    return handlers.block(local, expose=["z"])()


def empty():
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=0.0)


def moving():
    tau = numpyro.sample("tau", dist.LogNormal(0.0, 1.0))
    numpyro.sample("z", dist.Uniform(0.0, tau))


@pytest.mark.parametrize(
    ("model", "flow", "message"),
    [
        (local, "auto", r"'z' is local to the plate 'data', subsampled \(2 of 10\)"),
        (hidden_plate, "auto", "cannot see whether the plate data is subsampled: expose it in block"),
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
            guide.setup()


def test_serves_latents_in_a_plate_that_is_hidden():
    guide = AutoFlow(handlers.block(lambda: local(None), expose=["z"]))
    assert guide.sample_posterior(jax.random.key(0), guide.setup())["z"].shape == (10,)


def test_other_mistakes_say_what_to_do():
    with pytest.raises(TypeError, match="a name, a bijection or a function"):
        AutoFlow(schools, 3).setup()
    for model in (None, 0, jax.random.key(0)):
        with pytest.raises(TypeError, match="AutoFlow: model must be a function with sample sites, got"):
            AutoFlow(model, schools)
    with pytest.raises(TypeError, match=r"flow\(6\) is int"):
        AutoFlow(schools, lambda dim: dim).setup()
    with pytest.raises(ValueError, match="init_scale must be positive"):
        AutoFlow(schools, init_scale=0.0)
    for method in ("median", "get_posterior", "get_transform"):
        with pytest.raises(RuntimeError, match="setup"):
            getattr(AutoFlow(schools), method)({})
    guide = AutoFlow(schools)
    guide.setup()
    with pytest.raises(KeyError, match="auto_flow"):
        guide.median({"other": 1.0})
    params = guide.setup()
    for key in (0, None, params, jnp.zeros(2)):
        with pytest.raises(TypeError, match="sample_posterior: rng_key must be"):
            guide.sample_posterior(key, params)
    with pytest.raises(TypeError, match=r"quantiles: rng_key must be a key such as .* got 1"):
        guide.median(params, rng_key=1)
    with pytest.raises(TypeError, match="params must be a dict of parameters"):
        guide.median(jax.random.key(0))
    assert guide.sample_posterior(jax.random.PRNGKey(0), params)  # of the old style

    def data_support(high):
        numpyro.sample("z", dist.Uniform(0.0, high))

    guide = AutoFlow(data_support)
    svi = SVI(data_support, guide, numpyro.optim.Adam(1e-2), Trace_ELBO())
    with pytest.raises(ValueError, match=r"guide.setup\(\*args\) once"):
        jax.jit(svi.init)(jax.random.key(0), 2.0)


@pytest.mark.filterwarnings("ignore:shape requires ndarray:DeprecationWarning")  # NumPyro's scan, of nested parameters
def test_serves_a_model_with_a_scan():
    def model(y):
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))

        def step(z, y):
            z = numpyro.sample("z", dist.Normal(z, scale))
            numpyro.sample("y", dist.Normal(z, 0.5), obs=y)
            return z, None

        scan(step, 0.0, y)

    guide = AutoFlow(model, fp.Planar)
    result = run(model, guide, steps=3, args=(jnp.ones(5),))
    assert jnp.isfinite(result.losses).all()
    assert guide.sample_posterior(jax.random.key(0), result.params)["z"].shape == (5,)


def line(x, y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 3.0))
    with numpyro.plate("data", len(x)):
        return numpyro.sample("y", dist.Normal(a * x, 1.0), obs=y)


@pytest.mark.parametrize("parallel", [False, True])
def test_predicts_what_was_left_out_as_the_hosts_guides_do(parallel):
    """Data that the guide was trained with, at new places, of another number."""
    x, new = jnp.linspace(0.0, 1.0, 6), jnp.ones(4)
    shapes = []
    for guide in (AutoFlow(line, fp.ElementwiseAffine), AutoMultivariateNormal(line)):
        params = run(line, guide, steps=2, args=(x, 2 * x), elbo=Trace_ELBO()).params
        options = {"params": params, "num_samples": 5, "parallel": parallel}
        draws = Predictive(line, guide=guide, **options)(jax.random.key(0), new)
        assert jnp.isfinite(draws["y"]).all()
        shapes.append({name: value.shape for name, value in draws.items()})
        assert Predictive(guide, **options)(jax.random.key(0), new)["a"].shape == (5,)
    assert shapes[0] == shapes[1]


def test_latents_that_changed_or_went_are_refused():
    def model(size, a=None):
        with numpyro.plate("plate", size):
            numpyro.sample("a", dist.Normal(0.0, 1.0), obs=a)
        numpyro.sample("b", dist.Normal(0.0, 1.0))

    guide = AutoFlow(model, "planar")
    seeded = handlers.seed(handlers.substitute(guide, guide.setup(3)), 0)
    seeded(3)
    with pytest.raises(ValueError, match=r"site 'a' had the unconstrained shape \(3,\) and now has \(4,\)"):
        seeded(4)
    with pytest.raises(ValueError, match=r"site 'a' was a latent of the model .* and is none"):
        seeded(3, jnp.zeros(3))


PARTIAL = np.array([1.0, 2.0, 0.0, 4.0]), np.array([True, True, False, True])


def imputed(x, seen):
    m = numpyro.sample("m", dist.Normal(0.0, 10.0))
    with numpyro.plate("data", 4):
        return numpyro.sample("x", dist.Normal(m, 1.0), obs=x, obs_mask=seen)


def test_observed_entries_of_an_imputed_site_are_not_the_guides(tmp_path):
    guide = flowppl.numpyro.AutoFlow(imputed, fp.ElementwiseAffine)
    params = guide.setup(*PARTIAL)
    assert guide.latent_dim == 2
    evidence = multivariate_normal.logpdf(PARTIAL[0][PARTIAL[1]], jnp.zeros(3), jnp.eye(3) + 100)
    assert abs(evidence - -7.97) < 0.001
    weights = log_weights(jax.random.key(1), imputed, guide, params, *PARTIAL, num_samples=2000)
    assert evidence - 0.2 < weights.mean() < evidence + 0.05
    assert abs(jnp.log(jnp.exp(weights).mean()) - evidence) < 0.05
    elbo = jax.jit(Trace_ELBO(num_particles=500).loss, static_argnums=(2, 3))(
        jax.random.key(0), params, imputed, guide, *PARTIAL
    )
    assert abs(elbo + weights.mean()) < 0.1
    draws = guide.sample_posterior(jax.random.key(2), params, sample_shape=(2000,))
    assert abs(draws["x_unobserved"][:, 2].mean() - 7 / 3) < 0.2
    assert (guide.median(params)["x_unobserved"][np.array([0, 1, 3])] == 0).all()
    predict = Predictive(imputed, guide=guide, params=params, num_samples=3)
    assert predict(jax.random.key(0), *PARTIAL)["x"].shape == (3, 4)
    with pytest.raises(ValueError, match=r"other members .* are masked out of the sites x_unobserved"):
        handlers.seed(handlers.substitute(guide, params), 0)(PARTIAL[0], ~PARTIAL[1])
    with pytest.raises(ValueError, match=r"masks members of the sites x_unobserved.*call guide.setup"):
        jax.jit(AutoFlow(imputed).setup)(*PARTIAL)
    fp.save(tmp_path / "guide", guide, params)
    other = fp.load(tmp_path / "guide").sample_posterior(jax.random.key(2), params, sample_shape=(2000,))
    np.testing.assert_array_equal(other["x_unobserved"], draws["x_unobserved"])


def test_masked_members_of_a_bounded_latent_have_no_density():
    """The evidence of a model without data is 1."""

    def model():
        with numpyro.plate("plate", 3), handlers.mask(mask=np.array([True, False, True])):
            numpyro.sample("p", dist.Beta(2.0, 2.0))

    guide = AutoFlow(model, fp.ElementwiseAffine, init_scale=1.0)
    params = guide.setup()
    assert guide.latent_dim == 2
    weights = log_weights(jax.random.key(0), model, guide, params, num_samples=4000)
    assert abs(jnp.log(jnp.exp(weights).mean())) < 0.05


def test_a_model_all_of_whose_latents_are_masked_is_refused():
    def model():
        with handlers.mask(mask=False):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"no latent variables: .* masked out"):
        AutoFlow(model).setup()


def test_a_masked_prior_that_has_a_density_by_other_means_is_the_guides():
    def model():
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).mask(np.array([True, False])))
        numpyro.sample("y", dist.Normal(z[1], 1.0), obs=3.0)

    guide = flowppl.numpyro.AutoFlow(model, fp.ElementwiseAffine)
    params = guide.setup()
    assert guide.latent_dim == 2
    np.testing.assert_allclose(guide.get_transform(params)(jnp.zeros(2)), [0.0, 3.0], atol=1e-4)


MIXED = jnp.array([-2.1, -1.9, 2.0, 2.2, 1.8])


def test_enumeration_gives_the_elbo_of_the_model_without_its_discrete_site():
    def parts():
        weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(2)))
        with numpyro.plate("components", 2):
            return weights, numpyro.sample("loc", dist.Normal(0.0, 5.0))

    def model():
        weights, loc = parts()
        with numpyro.plate("data", 5):
            z = numpyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            numpyro.sample("y", dist.Normal(loc[z], 0.5), obs=MIXED)

    def summed_out():
        weights, loc = parts()
        with numpyro.plate("data", 5):
            mixture = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, 0.5))
            numpyro.sample("y", mixture, obs=MIXED)

    guide = AutoFlow(handlers.block(model, hide=["z"]), fp.Planar)
    params, key = guide.setup(), jax.random.key(0)
    enumerated, plain = (
        jax.jit(elbo(num_particles=10).loss, static_argnums=(2, 3)) for elbo in (TraceEnum_ELBO, Trace_ELBO)
    )
    np.testing.assert_allclose(enumerated(key, params, model, guide), plain(key, params, summed_out, guide), rtol=1e-10)


def test_serves_a_reparametrised_site_whose_own_support_cannot_be_mapped():
    def model():
        with numpyro.plate("plate", 2):
            d = numpyro.sample("d", dist.ProjectedNormal(jnp.array([1.0, 2.0, 0.0])))
        numpyro.sample("y", dist.Normal(d[..., 0].sum(-1), 0.1), obs=1.0)

    reparametrised = handlers.reparam(model, {"d": ProjectedNormalReparam()})
    guide = flowppl.numpyro.AutoFlow(reparametrised, "planar")
    result = run(reparametrised, guide, steps=3)
    assert jnp.isfinite(result.losses).all()
    assert guide.median(result.params)["d_normal"].shape == (2, 3)
    with pytest.raises(ValueError, match="ProjectedNormalReparam"):
        AutoFlow(model).setup()


def test_latents_and_data_without_real_numbers_are_refused_by_name():
    class Unmapped(dist.Normal):
        support = dist.constraints.dependent(is_discrete=False, event_dim=0)

    def unmapped():
        numpyro.sample("w", Unmapped(0.0, 1.0))

    def wave():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0, validate_args=False), obs=jnp.array([1 + 1j]))

    with pytest.raises(ValueError, match=r"site 'w' has the support .*LKJCholesky"):
        AutoFlow(unmapped).setup()
    with pytest.raises(TypeError, match=r"site 'y' has complex values \(complex"):
        AutoFlow(wave).setup()


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        (lambda: flowppl.numpyro.realnvp, "flow=realnvp asks for a key.*flow=flowppl.realnvp"),
        (lambda: flowppl.numpyro.Planar, "flow=Planar asks for .*flow=flowppl.Planar"),
        (lambda: flowppl.numpyro.planar(jax.random.key(0), 6), "a FlowTransform with weights of its own.*bijection"),
        (
            lambda: flowppl.numpyro.Flow.init(jax.random.key(0), fp.planar(6)),
            "a Flow with weights of its own.*bijection",
        ),
        (lambda: dist.transforms.ExpTransform(), r"flow=flowppl.numpyro.Wrap\(transform, 6\)"),
    ],
)
def test_a_transform_as_flow_names_the_one_change(flow, message):
    with pytest.raises(TypeError, match=message):
        AutoFlow(schools, flow()).setup()


def test_a_flow_of_a_wrong_name_is_told_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'realnvp'"):
        AutoFlow(schools, "realnpv").setup()


def test_summaries_are_used_as_those_of_the_hosts_guides():
    shapes = []
    for guide in (AutoFlow(schools, "planar"), AutoMultivariateNormal(schools)):
        svi = SVI(schools, guide, numpyro.optim.Adam(1e-2), Trace_ELBO())

        def summaries(key, guide=guide, svi=svi):
            params = svi.get_params(svi.init(key))
            return (
                guide.quantiles(params, [0.05, 0.95]),
                guide.median(params),
                guide.sample_posterior(key, params, sample_shape=(3,)),
                guide.sample_posterior(key, params, None, sample_shape=(3,)),
                handlers.seed(handlers.substitute(guide, params), 0)(),
            )

        found = jax.eval_shape(summaries, jax.random.key(0))
        shapes.append([{name: value.shape for name, value in each.items()} for each in found])
    assert shapes[0] == shapes[1]
