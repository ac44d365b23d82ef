"""Memory, first steps, many draws, and torch.compile."""

import statistics

from suite import child
from suite.tables import markdown
from suite.turns import take_turns
from suite.workloads import COLUMNS, MEMORY, TRAININGS, brief, languages, offered, say


def memory(plan, problems):
    """Megabytes of a training step of deep couplings, plain and reversible."""
    rows = []
    for language in languages(plan):
        functions = offered(language, "coupling", problems)
        if "flowppl" in functions:
            plain = functions["flowppl"]
            functions["flowppl, `reversible`"] = lambda plain=plain, **sizes: plain(**sizes, reversible=True)
        for workload in MEMORY:
            say(f"memory of {workload.title}, {language.name}")
            cells = dict.fromkeys(COLUMNS_OF_MEMORY, "")
            for column, function in functions.items():
                try:
                    weights, score = function(**workload.sizes)
                    found = language.steps.memory(weights, score, language.steps.array(workload.data()))
                    cells[column] = f"{found / 1e6:.3g}"
                except Exception as error:
                    problems.add(f"memory of {workload.title}, {column}, {language.name}: {brief(error)}")
            rows.append([workload.title, language.name, *cells.values()])
    yield from ["### Memory", "", MEMORY_TEXT, "", *markdown(["MB", "", *COLUMNS_OF_MEMORY], rows)]


COLUMNS_OF_MEMORY = [*(column for column in COLUMNS if column != "by hand"), "flowppl, `reversible`"]
MEMORY_TEXT = """\
Megabytes at the peak of a training step beside weights, data and gradients (couplings, D = 256, batches of 1,024,
networks of two layers of 256): in torch the largest sum of living tensors, in JAX what XLA plans."""


def first_steps(plan, problems):
    """Seconds from a new guide to the end of its first step."""
    cases = {
        "`AutoFlow(model)`": ("flowppl_pyro", "flowppl_numpyro", "default"),
        "`AutoFlow` with an IAF": ("flowppl_pyro", "flowppl_numpyro", "iaf"),
        "`AutoIAFNormal`": ("pyro", "numpyro", "iaf"),
    }
    rows = []
    for label, (*names, kind) in cases.items():
        results = [alone(name, "first_step", kind, plan, problems) for name in names]
        rows.append([label, *(f"{result['seconds']:.1f}" if result else "" for result in results)])
    yield from ["### The first step of a guide", "", FIRST_STEP, "", *markdown(["seconds", "Pyro", "NumPyro"], rows)]


FIRST_STEP = """\
Seconds from a new guide of 50 latents (a logistic regression on 2,000 rows) to the end of the first step of SVI, most
of them compilation: each in a process of its own, without imports, without a cache on disk."""


def draws(plan, problems):
    """Memory of many draws."""
    num = 10**5 if plan.quick else 10**6
    rows = []
    for name in ("flowppl_pyro", "flowppl_numpyro"):
        result = alone(name, "draw", num, plan, problems)
        if result:
            rows.append([name, f"{result['seconds']:.2f}", f"{result['megabytes']:.0f}", f"{num * 10 * 4 / 1e6:.0f}"])
    head = [f"`sample({num:_})`", "seconds", "MB more at the peak", "MB of the draws"]
    yield from ["### Many draws", "", DRAWS, "", *markdown(head, rows)]


DRAWS = """\
Draws of ten latents from a fitted guide. "MB more" is what the largest memory of the process grew by: 0 where the fit
before had needed more than the draws."""


def alone(name, function, argument, plan, problems):
    say(f"{function} of {name}, {argument}")
    try:
        return child.run(name, function, argument, plan.clock)
    except Exception as error:
        problems.add(f"{function} of {name}, {argument}: {brief(error)}")
        return None


def compiled(plan, problems):
    """Flows and guides of flowppl under torch.compile."""
    import torch

    from suite import torch_steps
    from suite.peers import flowppl_pyro

    rows = []
    for workload in [each for each in TRAININGS if each.quick]:
        say(f"compiled: {workload.title}")
        weights, score = getattr(flowppl_pyro, workload.function)(**workload.sizes)
        x = torch_steps.array(workload.data())
        cells = [workload.title, str(breaks(lambda: score(x)))]  # noqa: B023
        if not plan.quick:
            steps = [torch_steps.training(weights, each, x) for each in (score, torch.compile(score))]
            first = [plan.seconds(step) for step in steps]
            times = take_turns(dict(enumerate(steps)), plan).values()
            cells += [*(f"{1e3 * statistics.median(each):.3g}" for each in times), f"{first[1]:.0f}"]
        rows.append(cells)
    for label, function in guide_functions(plan.quick).items():
        say(f"compiled: {label}")
        rows.append([label, str(breaks(function)), *([] if plan.quick else ["", "", ""])])
    head = ["flowppl", "graph breaks", *([] if plan.quick else ["eager, ms", "compiled, ms", "to the first step, s"])]
    yield from ["### torch.compile", "", COMPILED, "", *markdown(head, rows)]


COMPILED = """\
Breaks of the graph of the score, and the training step with it compiled. The guide is that of D = 10 with its
defaults."""


def breaks(function):
    import torch

    torch._dynamo.reset()
    found = torch._dynamo.explain(function)().graph_break_count
    torch._dynamo.reset()
    return found


def guide_functions(quick):
    """What a step of variational inference is made of; to trace the model as well takes a minute."""
    import flowppl.pyro as fpp
    from suite.peers import flowppl_pyro, pyro

    guide = flowppl_pyro.new_guide(pyro.MODELS["schools"](), default=True)
    guide.setup()

    def draw_and_density():
        flow = guide.get_posterior()
        return flow.log_prob(flow.rsample())

    functions = {"guide: draw and density": draw_and_density}
    if not quick:
        elbo = fpp.PathELBO()
        functions["guide: `PathELBO`, with the model"] = lambda: elbo.differentiable_loss(guide.model, guide)
    return functions
