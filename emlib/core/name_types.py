"""The types of names in profiles, for pydantic. They stand alone because the Makefile reads names without pydantic."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from emlib.core import names

Name = Annotated[str, AfterValidator(names.named)]
Word = Annotated[str, AfterValidator(names.word)]
Repository = Annotated[str, AfterValidator(names.repository)]  # on the Hugging Face hub
Revision = Annotated[str, AfterValidator(names.revision)]
PathInside = Annotated[str, AfterValidator(names.inside)]
Title = Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[^\x00-\x1f\x7f\u2028\u2029]+$")]  # of one line
