"""How many requests are under way: what answers and refusals teach, by hand."""

from __future__ import annotations

import asyncio
import itertools
import math

import pytest

from emlib.judging.slots import PROBE, SPREAD, WINDOW, Slots, Start


def limits(slots: Slots, *events: tuple[str, Start]) -> list[float]:
    """The limit after each event."""
    async def lived() -> list[float]:
        found = []
        for name, start in events:
            getattr(slots, name)(start)
            found.append(slots.limit)
        return found

    return asyncio.run(lived())


def test_one_request_goes_first_and_its_answer_opens_a_window_that_grows_by_one_an_answer() -> None:
    answer = "answered", Start(0, 0.0, 1)
    assert Slots(64).limit == 1
    assert limits(Slots(64), answer, answer, answer) == [WINDOW, WINDOW + 1, WINDOW + 2]
    assert limits(Slots(3), answer, answer) == [3, 3]


def test_a_refusal_tells_how_many_were_too_many_and_those_of_its_round_tell_it_once() -> None:
    slots = Slots(256)
    slots.limit = 120.0  # far beyond what the server takes, which shows a round later
    first, second, later = Start(0, 0.0, 64), Start(0, 0.0, 65), Start(1, 0.0, 9)
    assert limits(slots, ("refused", first), ("refused", second)) == [56, 56]
    assert limits(slots, ("answered", later)) == [56 + 1 / 56]
    assert limits(slots, ("refused", later), ("refused", later)) == [63 / 8, 63 / 8]
    assert limits(slots, ("refused", Start(2, 0.0, 1))) == [1]


@pytest.mark.parametrize(("limit", "step"), [(62.5, 1.0), (63.0, PROBE), (64.5, PROBE), (65.0, 1.0), (90.0, 1.0)])
def test_it_grows_slowly_where_the_server_refused_before_and_nowhere_else(limit: float, step: float) -> None:
    slots = Slots(256)
    limits(slots, ("refused", Start(0, 0.0, 64)))
    slots.limit = limit
    assert limits(slots, ("answered", Start(1, 0.0, 1))) == [limit + step / limit]


def test_a_refusal_of_a_single_request_is_made_up_for_in_as_many_rounds_as_the_limit_is_high() -> None:
    """Some thirty answers to the third request at once, and from there 3 + 4 + ... + 63 = 2013 to the 64th."""
    slots = Slots(64)
    limits(slots, ("refused", Start(0, 0.0, 1)))
    assert slots.limit == 1
    assert limits(slots, *[("answered", Start(1, 0.0, 1))] * 2100)[-1] == 64


@pytest.mark.parametrize("many", [1, 5, 40])
def test_no_more_are_under_way_than_the_limit_and_every_request_has_its_turn(many: int) -> None:
    slots = Slots(4)
    most: list[int] = []

    async def request() -> None:
        async with slots as start:
            most.append(slots.used)
            await asyncio.sleep(0)
            slots.answered(start)

    async def all_of_them() -> None:
        await asyncio.gather(*(request() for _ in range(many)))

    asyncio.run(all_of_them())
    assert len(most) == many
    assert max(most) <= 4
    assert slots.used == 0


def test_requests_leave_one_after_the_other_over_most_of_an_answers_time() -> None:
    slots, starts = Slots(8), []

    async def request() -> None:
        async with slots as start:
            starts.append(start)

    async def all_of_them() -> None:
        now = asyncio.get_running_loop().time()
        slots.answered(Start(0, now - 0.08, 1))  # an answer that took 80 ms
        await asyncio.gather(*(request() for _ in range(8)))

    asyncio.run(all_of_them())
    gaps = [later.time - start.time for start, later in itertools.pairwise(starts)]
    assert [start.under_way for start in starts] == list(range(1, 9))
    assert min(gaps) >= SPREAD * 0.08 / 8 - 1e-9
    assert math.isclose(slots.limit, 8)
