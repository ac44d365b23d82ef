"""How Sphinx builds the site: from the files of this folder, the docstrings and the stored outputs of the notebooks."""

import os
import pathlib
import re
import shutil
import tomllib

os.environ["JAX_PLATFORMS"] = "cpu"

from docutils import nodes
from latex2mathml.converter import convert

import flowppl

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
REPOSITORY = "https://github.com/flowppl/flowppl"

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
HOSTS = {"pyro": ("torch", "pyro-ppl"), "numpyro": ("jax", "numpyro")}

project = "flowppl"
author = "The flowppl authors"
copyright = author
release = version = flowppl.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates", "howto/_model.md"]
nitpicky = False

# Notebooks are shown as they are stored; tests run them.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = [
    "amsmath",
    "attrs_inline",
    "colon_fence",
    "deflist",
    "dollarmath",
    "substitution",
]
myst_substitutions = {
    "versions": "\n".join(
        f"- `{each}`"
        for extra, names in HOSTS.items()
        for each in EXTRAS[extra]
        if re.match(r"[\w-]+", each)[0] in names
    )
}
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "misc.highlighting_failure"]

autosummary_generate = True
autosummary_imported_members = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature has them
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_preprocess_types = False
add_module_names = False
python_maximum_signature_line_length = 88
intersphinx_mapping: dict = {}  # the site is built without the internet

html_math_renderer = "mathml"  # browsers know it: no script, no internet
pygments_dark_style = "github-dark"
html_theme = "furo"
html_title = "flowppl"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
    "top_of_page_buttons": ["view"],
    "footer_icons": [],
}
html_show_sphinx = False
copybutton_prompt_text = ">>> |\\$ "
copybutton_prompt_is_regexp = True


PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
}


def bring_in(app):
    """Copy what stands elsewhere in the repository: notebooks, and the pages for readers of the source."""
    there = HERE / "tutorials"
    there.mkdir(exist_ok=True)
    for notebook in sorted((ROOT / "tutorials").glob("[0-9]*.ipynb")):
        _copy(notebook, there / notebook.name)
    for source, page in PAGES.items():
        (HERE / page).write_text(
            _with_links(
                (ROOT / source).read_text(), pathlib.PurePosixPath(source).parent
            )
        )


def _with_links(text, folder):
    """What a link reaches from a folder of the repository, which is no page here, on the repository's own pages."""

    def linked(match):
        kind = "raw" if match[1] else "blob"  # a picture is shown as it is
        return f"{match[1]}]({REPOSITORY}/{kind}/main/{folder / match[2]})"

    return re.sub(r"(!\[[^]]*|)\]\((?!https?:|#)([^)]+)\)", linked, text)


def _copy(source, target):
    if not target.exists() or target.read_bytes() != source.read_bytes():
        shutil.copyfile(source, target)


# A function's name and what follows it, unless that is its index or a bracket: TeX leaves a thin space between them.
FUNCTION = re.compile(
    r"(?<!<msub>)(?<!<msup>)(?<!<munder>)(<mi>[a-z]{2,}</mi>)(?=<m[infrs]|<mo[^>]*>&#x0007C;)"
)


def mathml(tex, **options):
    tex = tex.replace("{aligned}", "{align*}")  # the one that convert knows
    return FUNCTION.sub(r'\1<mspace width="0.17em"></mspace>', convert(tex, **options))


def show_math(self, node):
    self.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def show_equation(self, node):
    """Equations with a blank line between them stand below each other, lines of one too."""
    for tex in re.split(r"\n\s*\n", node.astext().strip()):
        lines = (
            tex
            if r"\begin" in tex or r"\\" not in tex
            else rf"\begin{{align*}}{tex}\end{{align*}}"
        )
        self.body.append(f'<div class="math">{mathml(lines, display="block")}</div>')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (show_math, None), (show_equation, None))
    app.connect("builder-inited", bring_in, priority=1)
