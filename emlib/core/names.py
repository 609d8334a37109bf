"""What a name may be: of a profile, a task, a method, a model, a data set, a question set or a trait.

Names become parts of paths, command lines, columns and pages, so that one pattern holds for all of them. It has no
slash, quote, brace or space, and a name can neither leave its folder nor look like an option.
"""

from __future__ import annotations

import re

from emlib.core.errors import shortened

LONGEST = 80
NAME = rf"[A-Za-z0-9](?:[A-Za-z0-9_+-]|\.(?!\.)){{0,{LONGEST - 1}}}"
ALLOWED = (f"letters from a to z, digits, '_', '-', '+' and single dots, at most {LONGEST} characters, the first a "
           "letter or a digit")
# A word is a name that is also a column of a table and a part of a key on the command line.
WORD = rf"[a-z][a-z0-9_+]{{0,{LONGEST - 1}}}"
ALLOWED_IN_WORDS = f"lower-case letters from a to z, digits, '_' and '+', at most {LONGEST}, the first a letter"


def is_name(text: str) -> bool:
    """Return whether a text is a name."""
    return re.fullmatch(NAME, text, re.ASCII) is not None


def named(text: str) -> str:
    """Return a name; raise ValueError, with what is allowed, for any other text."""
    return _matching(text, NAME, f"a name is made of {ALLOWED}")


def word(text: str) -> str:
    """Return a word; raise ValueError, with what is allowed, for any other text."""
    return _matching(text, WORD, f"a name is made here of {ALLOWED_IN_WORDS}")


def repository(text: str) -> str:
    """Return the name of a repository on the hub; raise ValueError, with what is allowed, for any other text."""
    return _matching(text, f"(?:{NAME}/)?{NAME}", f"expected owner/name, where each is made of {ALLOWED}")


def revision(text: str) -> str:
    """Return a revision on the hub; raise ValueError, with what is allowed, for any other text."""
    return _matching(text, f"{NAME}(?:/{NAME})*", f"expected a commit or a branch, whose parts are made of {ALLOWED}")


def inside(text: str) -> str:
    """Return a path that stays inside its folder; raise ValueError, with what is allowed, for any other text."""
    return _matching(text, f"{NAME}(?:/{NAME})*", "expected a path that stays inside its folder, with '/' between "
                     f"names, each made of {ALLOWED}")


def _matching(text: str, pattern: str, allowed: str) -> str:
    if not re.fullmatch(pattern, text, re.ASCII):
        raise ValueError(f"{shortened(text)!r} is not allowed: {allowed}")
    return text
