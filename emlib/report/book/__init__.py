"""The study as pages of HTML, from what its notebooks left: `make report`.

Sphinx with MyST-NB makes them, the engine that Jupyter Book 1 is built on: Jupyter Book 2 needs node, and Quarto a
download outside the package index. The pages work from the file system and ask no network for anything: equations are
MathML, the search is Sphinx's own, and a policy in every page forbids requests to other hosts.
"""
