"""The pages of the site: their examples run and print what the pages say, and their links lead somewhere."""

import contextlib
import importlib
import io
import math
import pathlib
import re

import jax
import pytest
import torch

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {
    str(page.relative_to(DOCS).with_suffix("")): page
    for page in sorted(DOCS.rglob("*.md"))
    if not page.name.startswith("_") and "_build" not in page.parts and "generated" not in page.parts
}
# The beginning of a tab and its language, the end of one, a block and its text.
MARKS = re.compile(r"^:::\{tab-item\} (\w+)|^(:::)$|^```(python|text)\n(.*?)^```", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"-?\d[\d.]*(?:e-?\d+)?")


def blocks(page, language):
    """The code of a page in one language, each block with what it is said to print."""
    text = re.sub(r"```\{include\} (\S+)\n```", lambda m: (page.parent / m[1]).read_text(), page.read_text())
    tab, found = None, []
    for match in MARKS.finditer(text):
        name, closing, kind, body = match.groups()
        if name or closing:
            tab = name
        elif tab in (None, language) and kind == "python":
            found.append([body, None])
        elif tab in (None, language) and found:
            found[-1][1] = body
    return found


def same(found, expected):
    """Whether two texts have the same words, and numbers near each other: fits differ from machine to machine."""
    pairs = zip(NUMBER.findall(found), NUMBER.findall(expected), strict=False)
    near = all(math.isclose(float(a.rstrip(".")), float(b.rstrip(".")), rel_tol=0.25, abs_tol=0.1) for a, b in pairs)
    return NUMBER.sub("#", found).split() == NUMBER.sub("#", expected).split() and near


EXAMPLES = [
    (name, language)
    for name, page in PAGES.items()
    for language in ("Pyro", "NumPyro")
    if "```python" in page.read_text() and blocks(page, language)
]


@pytest.fixture
def of_a_user():
    """The precision that a user begins with, where the tests have float64."""
    torch.set_default_dtype(torch.float32)
    jax.config.update("jax_enable_x64", False)
    yield
    torch.set_default_dtype(torch.float64)
    jax.config.update("jax_enable_x64", True)


@pytest.mark.stress
@pytest.mark.usefixtures("of_a_user")
@pytest.mark.parametrize(("name", "language"), EXAMPLES, ids=[f"{name}-{language}" for name, language in EXAMPLES])
@pytest.mark.filterwarnings("ignore")
def test_examples_print_what_the_page_says(name, language, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": name}
    for code, expected in blocks(PAGES[name], language):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"{name}.md", "exec"), names)
        if expected is not None:
            assert same(printed.getvalue(), expected), printed.getvalue()


@pytest.mark.parametrize(
    ("name", "page"), [("flowppl", "core"), *((f"flowppl.{name}", name) for name in ("pyro", "numpyro", "diagnostics"))]
)
def test_every_public_name_has_its_page(name, page):
    """In NumPyro's list are not the results that both languages share: they are in Pyro's."""
    public = set(importlib.import_module(name).__all__)
    listed = set(re.findall(r"^   (\w+)$", (DOCS / "api" / f"{page}.md").read_text(), re.MULTILINE))
    shared = {each for each in public if getattr(fpp, each, None) is getattr(fnp, each, False)}
    assert listed == (public - shared if page == "numpyro" else public)


def test_every_page_is_reached_and_every_link_leads_somewhere():
    """Links between pages, without building the site; notebooks and copies of files of the repository are there."""
    made = {"changelog", "contributing", "security", "benchmarks"}
    made |= {f"tutorials/{notebook.stem}" for notebook in (ROOT / "tutorials").glob("*.ipynb")}
    for name, page in PAGES.items():
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            path = (page.parent / target).resolve().relative_to(DOCS)
            assert str(path.with_suffix("")) in set(PAGES) | made or (DOCS / path).exists(), f"{name}: {target}"


def test_every_flow_has_its_page_and_its_picture():
    names = set(fp.available_flows()) - {"sylvester"}  # another name of the orthogonal one
    index = PAGES["gallery/index"].read_text()
    for name in names:
        page = PAGES[f"gallery/{name}"].read_text()
        assert (DOCS / "gallery" / f"{name}.png").exists(), name
        for text in (f"{name}.png", "**When to use it.**", "**When not.**", "arXiv"):
            assert text in page, (name, text)
        for text in (f":link: {name}\n", f"[`{name}`]({name}.md)"):
            assert text in index, (name, text)


def test_what_readme_links_is_there():
    """Relative links, which the build of the package completes for the package's own page."""
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
