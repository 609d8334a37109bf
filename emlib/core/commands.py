"""The command lines that begin with a profile."""

from __future__ import annotations

import argparse


def profile_parser(prog: str, about: str) -> argparse.ArgumentParser:
    """Return a parser whose first argument is a profile; the command adds its own."""
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("profile", help="a name in params/, or the path of a YAML file")
    return parser
