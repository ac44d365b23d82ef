"""The tables, each a function that returns the lines of its section."""

import gc

from suite.turns import milliseconds, ratio_cell, take_turns
from suite.workloads import COLUMNS, GUIDES, SAMPLINGS, TRAININGS, brief, languages, offered, say


def markdown(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def built(functions, make, problems, label, language):
    """What ``make`` makes of each function, after one run of it; without those that fail, which are told."""
    steps = {}
    for column, function in functions.items():
        try:
            steps[column] = make(function)
            steps[column]()
        except Exception as error:
            steps.pop(column, None)
            problems.add(f"{label}: {language.columns[column]}: {brief(error)}")
    return steps


def row(label, language, times):
    """The time of flowppl, and how many times as long the others take."""
    cells = {"flowppl": milliseconds(times["flowppl"])} if "flowppl" in times else {}
    for column, theirs in times.items():
        if column != "flowppl":
            cells[column] = ratio_cell(theirs, times["flowppl"]) if "flowppl" in times else milliseconds(theirs)
    return [label, language.name, *(cells.get(column, "") for column in COLUMNS)]


def measured(label, language, steps, plan):
    say(f"{label}, {language.name}: {', '.join(steps)}")
    times = take_turns(steps, plan)
    gc.collect()
    return times


def trainings(workloads, plan, problems):
    """A row for each workload and language."""
    for workload in workloads:
        for language in languages(plan):
            functions = offered(language, workload.function, problems)

            def make(function, workload=workload, steps=language.steps):
                return steps.training(*function(**workload.sizes), steps.array(workload.data()))

            steps = built(functions, make, problems, workload.title, language)
            yield row(workload.title, language, measured(workload.title, language, steps, plan))


def samplings(workloads, plan, problems, passes):
    """Rows of the direction that takes many passes; to ``passes`` go rows of how many of its own passes it takes."""
    for workload in workloads:
        for language in languages(plan):
            functions, steps = offered(language, workload.function, problems), {}
            for direction in (0, 1):

                def make(function, direction=direction, workload=workload, steps=language.steps):
                    weights, *maps = function(**workload.sizes)
                    return steps.mapping(weights, maps[direction], steps.array(workload.data()))

                made = built(functions, make, problems, workload.title, language)
                steps |= {(column, direction): step for column, step in made.items()}
            times = measured(workload.title, language, {str(key): step for key, step in steps.items()}, plan)
            times = dict(zip(steps, times.values(), strict=True))
            there, back = ({c: t for (c, d), t in times.items() if d == direction} for direction in (0, 1))
            yield row(workload.title, language, back)
            cells = [ratio_cell(back[column], there[column]) if column in back else "" for column in COLUMNS]
            passes.append([workload.title, language.name, *cells])


def guides(workloads, plan, problems):
    """Rows of a step of variational inference, the host's own AutoIAFNormal beside it, for each way to take steps."""
    for workload in workloads:
        for language in languages(plan):
            functions = offered(language, workload.function, problems)
            found = {column: function(**workload.sizes) for column, function in functions.items()}
            for way in found.get("flowppl", {}):
                label, nums = f"{workload.title}: {way}", {}

                def make(ways, way=way, steps=language.steps, nums=nums):
                    step, num = ways[way]()
                    nums[id(ways)] = num
                    return steps.finished(step)

                steps = built(found, make, problems, label, language)
                times = measured(label, language, steps, plan)
                times = {c: [each / nums[id(found[c])] for each in seconds] for c, seconds in times.items()}
                yield row(label, language, times)


def compare(plan, problems):
    """How many times as long the others take."""
    passes, head = [], ["", "", *COLUMNS]
    rows = [
        *trainings(plan.chosen(TRAININGS), plan, problems),
        *samplings(plan.chosen(SAMPLINGS), plan, problems, passes),
        *guides(plan.chosen(GUIDES), plan, problems),
    ]
    yield from ["### Beside other libraries", "", COMPARISON, "", *markdown(head, rows)]
    if passes:
        yield from ["", PASSES, "", *markdown(head, passes)]


COMPARISON = """\
A step is the gradient of the mean score of a batch, a batch sampled, or a step of variational inference. In the first
column the time of flowppl, in the others how many times as long they take: the median over the rounds, and the range of
the rounds (of five or more without the two ends). Above 1 flowppl is faster."""
PASSES = """\
How many times as long as the one pass of the other direction the sequential one of a MAF takes, in each library:"""
