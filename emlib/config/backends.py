"""Which library runs a stage. The libraries agree up to rounding; their sampled answers agree in distribution."""

from __future__ import annotations

from typing import Any, Literal

from emlib.core.schema import Strict


class Backend(Strict):
    """The library of each stage; `auto` takes a faster one if it is installed and fits, else transformers.

    A library that is named is used, or refused with a reason. An artefact's facts record what ran.
    """

    training: Literal["auto", "transformers", "unsloth"] = "auto"
    generation: Literal["auto", "transformers", "vllm"] = "auto"
    scoring: Literal["auto", "transformers", "vllm"] = "auto"
    base_url: str | None = None  # of a running vLLM server, such as http://localhost:8000; None: emlib starts one

    def key(self, stage: Literal["training", "generation", "scoring"]) -> dict[str, Any]:
        """Return the entry in a stage's key: empty for `auto`, because keys do not depend on the device either.

        A library that is named is part of the key, so that two libraries can be compared.
        """
        wanted = getattr(self, stage)
        return {} if wanted == "auto" else {"backend": wanted}
