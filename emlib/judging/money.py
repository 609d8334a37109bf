"""The cost of judging: the price list, and a budget that is never exceeded.

Before a request is sent, the most that it can cost is booked; its answer replaces that by the true cost. The booking of
a request without an answer that may be billed (it timed out, or the process was killed) stays, so that the recorded
spending is never below the bill. Several processes may share one budget.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from emlib.config.providers import Price
from emlib.core import paths
from emlib.core.plain_yaml import read_yaml
from emlib.core.schema import Strict, check
from emlib.judging.cache import Cache

SPENT = "SELECT usd FROM accounts WHERE name = ?"  # of the score cache


class ListedPrice(Price):
    """The price of a model, and the day on which its provider ends it, if that is announced."""

    ends: datetime.date | None = None


class PriceList(Strict):
    """`params/prices.yaml`: prices by model snapshot, their date, and what an hour of a GPU costs."""

    date: str
    models: dict[str, ListedPrice]
    gpu_hour: Annotated[float, Field(gt=0)] | None = None


def price_list() -> PriceList:
    """Return the known prices; none is guessed."""
    path = paths.PARAMS / "prices.yaml"
    return check(PriceList, read_yaml(path), str(path))


def endings(models: Iterable[str], today: datetime.date) -> list[str]:
    """Return a sentence for each of these models whose provider has announced its end."""
    ends = {model: listed.ends for model, listed in price_list().models.items() if listed.ends is not None}
    return [f"{model} {'has ended' if ends[model] <= today else 'ends'} on {ends[model]}"
            + (f", in {(ends[model] - today).days} days" if ends[model] > today else "")
            for model in dict.fromkeys(models) if model in ends]


@dataclass(frozen=True)
class Budget:
    """The spending of one profile on judges, and its limit (`limit` in US dollars; None: no limit)."""

    cache: Cache
    name: str
    limit: float | None = None

    def spent(self) -> float:
        """Return the US dollars spent so far, including bookings for requests in progress."""
        found = self.cache.execute(SPENT, (self.name,))
        return float(found[0][0]) if found else 0.0

    def book(self, usd: float) -> bool:
        """Book an amount before it is spent; return False and book nothing where it would exceed the limit."""
        self.cache.execute("INSERT OR IGNORE INTO accounts VALUES (?, 0)", (self.name,))
        return bool(self.cache.execute(
            "UPDATE accounts SET usd = usd + :usd WHERE name = :name AND (:limit IS NULL OR usd + :usd <= :limit) "
            "RETURNING usd", {"usd": usd, "name": self.name, "limit": self.limit}))

    def settle(self, booked: float, usd: float) -> None:
        """Replace a booked amount by what was spent."""
        if booked != usd:
            self.cache.execute("UPDATE accounts SET usd = usd + ? WHERE name = ?", (usd - booked, self.name))
