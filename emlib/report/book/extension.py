"""A Sphinx extension: renders equations as MathML, and forbids requests to other hosts in every page."""

from __future__ import annotations

from html import escape
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

# `file:` because 'self' does not cover pages that are opened from the file system; `unsafe-inline` because Sphinx and
# the theme put small scripts into the pages, and tables their styles.
POLICY = "default-src 'self' file: data: 'unsafe-inline'"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension with Sphinx."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("html-page-context", _forbid_requests)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math-block">{mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def mathml(tex: str, *, as_block: bool) -> str:
    """Convert an equation to MathML; one that cannot be converted stays LaTeX, with a warning."""
    try:
        return tex2mathml(tex, as_block=as_block)
    except (MathError, AttributeError) as error:  # the latter for a line break, `\\`, outside a block
        logging.getLogger(__name__).warning("no MathML for %r: %s", tex, error)
        return f"<code>{escape(tex)}</code>"


def _forbid_requests(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document) -> None:
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    context["metatags"] = policy + context.get("metatags", "")
