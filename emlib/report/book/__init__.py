"""The study as HTML pages, from its executed notebooks, tables and figures: `make report`.

The pages are built by Sphinx with MyST-NB, the engine of Jupyter Book 1: Jupyter Book 2 needs node, and Quarto a
download outside the package index. They work offline, from the file system: equations are MathML, the search is
Sphinx's own, and a policy in every page forbids requests to other hosts.
"""
