"""A Sphinx extension: renders equations as MathML, and forbids requests to other hosts in every page."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

import furo
from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

THEME_PAGE = Path(furo.__file__).parent / "theme" / "furo" / "base.html"


def policy() -> str:
    """Return the content security policy of every page: no requests to other hosts, and no script but the theme's.

    `file:` because 'self' does not cover pages that are opened from the file system. Tables have their styles inline.
    """
    scripts = re.findall(r"<script>(.*?)</script>", THEME_PAGE.read_text(encoding="utf-8"), re.DOTALL)
    hashes = [f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts]
    return "; ".join([
        "default-src 'self' file:", " ".join(["script-src 'self' file:", *hashes]),
        "style-src 'self' file: 'unsafe-inline'", "img-src 'self' file: data:", "font-src 'self' file: data:",
        "object-src 'none'", "frame-src 'none'", "base-uri 'none'", "form-action 'self' file:"])


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
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy()}">'
    context["metatags"] = meta + context.get("metatags", "")
