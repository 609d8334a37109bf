"""The paper's findings per method, as the notebooks of the defenses open with them."""

from __future__ import annotations

import pytest

from emlib.report.paper import summary
from emlib.report.tables import show


@pytest.mark.parametrize("method", ["kl", "ldifs", "persona_vector", "inoculation", "interleaving"])
def test_a_notebook_can_show_what_the_paper_finds(method: str) -> None:
    found = summary.of_methods("misaligned", method)
    assert found["method"].nunique() == 2
    assert show.show_table(found).to_html().count("<tr>") == len(found) + 1  # refused where two rows share an index
