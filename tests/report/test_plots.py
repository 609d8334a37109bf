"""What figures share: the grid of panels, the lengths of bars, and one legend for all panels."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from emlib.report.figures.plots import legend, panels, spans


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (2, (1, 2)), (3, (1, 3)), (4, (2, 3)), (7, (3, 3))])
def test_panels_have_their_size_and_spare_ones_are_hidden(count: int, shape: tuple[int, int]) -> None:
    figure, shown = panels(count, (3, 2), around=(1, 0.5), columns=3, sharey=True)
    assert len(shown) == count == sum(axis.get_visible() for axis in figure.axes)
    assert len(figure.axes) == shape[0] * shape[1]
    assert tuple(figure.get_size_inches()) == (1 + 3 * shape[1], 0.5 + 2 * shape[0])
    plt.close(figure)


def test_bars_reach_to_both_ends_and_there_is_none_without_an_interval() -> None:
    frame = pd.DataFrame({"share": [50, 10.0, None], "share_low": [40, 10.0, None], "share_high": [75, 12.0, None]})
    assert np.array_equal(spans(frame, "share"), [[10, 0, np.nan], [25, 2, np.nan]], equal_nan=True)


def test_a_label_of_several_panels_is_in_the_legend_once_and_one_of_the_last_panel_too() -> None:
    figure, (first, second) = panels(2, (3, 2), around=(1, 1))
    for axis, names in ((first, ["kl"]), (second, ["kl", "ldifs"])):
        for name in names:
            axis.plot([0], [0], label=name)
    legend(figure, 4)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["kl", "ldifs"]
    plt.close(figure)
    empty, _ = panels(1, (3, 2), around=(1, 1))
    legend(empty, 4)
    assert not empty.legends
    plt.close(empty)
