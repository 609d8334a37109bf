"""Which library runs a stage. The libraries agree up to rounding; their sampled answers agree in distribution."""

from __future__ import annotations

from typing import Literal

from emlib.core.schema import Strict


class Backend(Strict):
    """The library of each stage; `auto` takes a faster one if it is installed and fits, else transformers.

    A library that is named is used, or refused with a reason. Steps have what is stated here, so that two libraries can
    be compared, and keys do not depend on the device; an artefact's facts record what ran.
    """

    training: Literal["auto", "transformers", "unsloth"] = "auto"
    generation: Literal["auto", "transformers", "vllm"] = "auto"
    scoring: Literal["auto", "transformers", "vllm"] = "auto"
    base_url: str | None = None  # of a running vLLM server, such as http://localhost:8000; None: emlib starts one
