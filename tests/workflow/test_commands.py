"""Commands on a profile say how they are called, where an argument is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from emlib.report import estimate, panel, tensorboard
from emlib.report.book import __main__ as book
from emlib.study import overrides
from emlib.workflow import cleaning, graph, status, watch

COMMANDS = [command.main for command in (
    book, cleaning, estimate, graph, overrides, panel, status, tensorboard, watch)]


@pytest.mark.parametrize("main", COMMANDS, ids=lambda main: main.__module__)
def test_a_command_without_a_profile_says_how_it_is_called(main: Callable[[list[str]], Any],
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert shown.startswith("usage: ")
    assert "required: profile" in shown


@pytest.mark.parametrize("arguments", [["tiny"], ["tiny", "02*"], ["tiny", "--"]])
def test_a_profile_is_watched_while_a_command_runs_its_jobs(arguments: list[str],
                                                            capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        watch.main(arguments)
    assert ended.value.code == 2
    assert "no command follows after --" in capsys.readouterr().err
