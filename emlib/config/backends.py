"""Which library does the work of a stage. They agree up to rounding, or, where answers are drawn, in distribution."""

from __future__ import annotations

from typing import Any, Literal

from emlib.core.schema import Strict


class Backend(Strict):
    """`auto` takes the faster library where it is there and can do it, and plain transformers otherwise.

    A library that is named is taken or refused with the reason. What ran stands in an artefact's facts. `base_url` is
    the address of a vLLM server that runs already, such as http://localhost:8000; without it emlib starts one.
    """

    training: Literal["auto", "transformers", "unsloth"] = "auto"
    generation: Literal["auto", "transformers", "vllm"] = "auto"
    scoring: Literal["auto", "transformers", "vllm"] = "auto"
    base_url: str | None = None

    def key(self, stage: Literal["training", "generation", "scoring"]) -> dict[str, Any]:
        """What a stage's key says of it: nothing for `auto`, as keys say nothing of the device either.

        A library that is named is part of the key, so that two of them can be compared.
        """
        wanted = getattr(self, stage)
        return {} if wanted == "auto" else {"backend": wanted}
