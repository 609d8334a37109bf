"""What judging costs: the price list, and an account that is never overdrawn.

Before a request is sent, the most that it can cost is booked; when its answer is there, that becomes what it did cost.
What may have been billed without an answer (a request that timed out, a process that was killed) stays booked, so that
the books are never below the bill. Several processes may book on one account.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from emlib.core import paths
from emlib.core.schema import Strict, check, read_yaml
from emlib.data.sizes import FRAME_TOKENS
from emlib.judging.cache import Cache

MILLION = 1_000_000
BATCH_SHARE = 0.5  # of the price, for a request in a batch
Usd = Annotated[float, Field(ge=0)]


class Price(Strict):
    """US dollars for a million tokens read and written."""

    read: Usd
    written: Usd

    def of(self, tokens: tuple[int, int], *, batch: bool = False) -> float:
        """What tokens read and written cost, in US dollars."""
        return (tokens[0] * self.read + tokens[1] * self.written) / MILLION * (BATCH_SHARE if batch else 1)


class PriceList(Strict):
    """`params/prices.yaml`: prices by snapshot, and the day of which they are."""

    date: str
    models: dict[str, Price]


def price_list() -> PriceList:
    """The prices that are known; nothing is guessed."""
    path = paths.PARAMS / "prices.yaml"
    return check(PriceList, read_yaml(path), str(path))


def most_tokens(texts: Sequence[str]) -> int:
    """More tokens than a tokenizer can make of a chat: a token has at least a byte."""
    return sum(len(text.encode()) for text in texts) + FRAME_TOKENS



@dataclass(frozen=True)
class Budget:
    """What one profile has spent on judges, and may spend (`limit` in US dollars; None: any amount)."""

    cache: Cache
    name: str
    limit: float | None = None

    def spent(self) -> float:
        """US dollars so far, what is booked for requests under way included."""
        found = self.cache.execute("SELECT usd FROM accounts WHERE name = ?", (self.name,))
        return float(found[0][0]) if found else 0.0

    def book(self, usd: float) -> bool:
        """Book an amount before it is spent; False, and nothing booked, where that would pass the limit."""
        self.cache.execute("INSERT OR IGNORE INTO accounts VALUES (?, 0)", (self.name,))
        return bool(self.cache.execute(
            "UPDATE accounts SET usd = usd + :usd WHERE name = :name AND (:limit IS NULL OR usd + :usd <= :limit) "
            "RETURNING usd", {"usd": usd, "name": self.name, "limit": self.limit}))

    def settle(self, booked: float, usd: float) -> None:
        """Put what was spent in the place of what was booked for it."""
        if booked != usd:
            self.cache.execute("UPDATE accounts SET usd = usd + ? WHERE name = ?", (usd - booked, self.name))

