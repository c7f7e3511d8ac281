"""How Sphinx builds the documentation: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import powergrad_ext  # noqa: E402

project = "powergrad_ext"
author = "the powergrad_ext authors"
copyright = author
release = version = powergrad_ext.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

napoleon_use_rtype = False

# The reference needs the package alone: the frameworks of the integrations are stood in for.
autodoc_mock_imports = [
    "fastai",
    "lightning",
    "spmd_types",
    "timm",
    "torchtitan",
    "transformers",
    "trl",
]
autodoc_member_order = "bysource"
# Unknown targets fail the build. torch and the frameworks have their own references elsewhere.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(collections|fastai|lightning|nn|timm|torch|transformers|F|Tensor)\b.*"),
    ("py:(class|exc)", r".* .*"),  # sentences in a docstring's sections, not names
]

html_theme = "furo"
html_title = "powergrad_ext"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"


def setup(app: Sphinx) -> None:
    """Render formulas as MathML, which browsers draw without a script: the site works from disk."""

    def inline(translator: HTML5Translator, node: nodes.math) -> None:
        translator.body.append(convert(node.astext()))
        raise nodes.SkipNode

    def block(translator: HTML5Translator, node: nodes.math_block) -> None:
        translator.body.append(convert(node.astext(), display="block"))
        raise nodes.SkipNode

    app.add_html_math_renderer("mathml", (inline, None), (block, None))
