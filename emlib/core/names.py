"""What a name may be: of a profile, a task, a method, a model, a data set, a question set or a trait.

Names become parts of paths, command lines, columns and pages, so that one pattern holds for all of them. It has no
slash, quote, brace or space, and a name can neither leave its folder nor look like an option.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from emlib.core.errors import shortened

LONGEST = 80
NAME = rf"[A-Za-z0-9](?:[A-Za-z0-9_+-]|\.(?!\.)){{0,{LONGEST - 1}}}"
ALLOWED = (f"letters from a to z, digits, '_', '-', '+' and single dots, at most {LONGEST} characters, the first a "
           "letter or a digit")
WORD = rf"[a-z][a-z0-9_+]{{0,{LONGEST - 1}}}"
ALLOWED_IN_WORDS = f"lower-case letters from a to z, digits, '_' and '+', at most {LONGEST}, the first a letter"


def is_name(text: str) -> bool:
    """Return whether a text is a name."""
    return re.fullmatch(NAME, text, re.ASCII) is not None


def _only(pattern: str, allowed: str) -> AfterValidator:
    """Return a validator that refuses any text but those of a pattern, and says what is allowed."""
    def validated(text: str) -> str:
        if not re.fullmatch(pattern, text, re.ASCII):
            raise ValueError(f"{shortened(text)!r} is not allowed: {allowed}")
        return text

    return AfterValidator(validated)


Name = Annotated[str, _only(NAME, f"a name is made of {ALLOWED}")]
# A word is a name that is also a column of a table and a part of a key on the command line.
Word = Annotated[str, _only(WORD, f"a name is made here of {ALLOWED_IN_WORDS}")]
# A repository and a revision are the Hugging Face hub's.
Repository = Annotated[str, _only(f"(?:{NAME}/)?{NAME}", f"expected owner/name, where each is made of {ALLOWED}")]
Revision = Annotated[str, _only(f"{NAME}(?:/{NAME})*",
                                f"expected a commit or a branch, whose parts are made of {ALLOWED}")]
PathInside = Annotated[str, _only(f"{NAME}(?:/{NAME})*", "expected a path that stays inside its folder, with '/' "
                                  f"between names, each made of {ALLOWED}")]
Title = Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[^\x00-\x1f\x7f\u2028\u2029]+$")]  # of one line
