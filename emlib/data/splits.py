"""The check of a split into rows to train on and rows that are held out."""

from __future__ import annotations

from emlib.core.errors import DataError


def refuse_empty_part(share: float, held_out: int, count: int, what: str) -> None:
    """Refuse a split of `count` rows that leaves one part empty; `what` says in the message what they are.

    Raises:
        DataError: all rows are held out, or none.
    """
    if not 0 < held_out < count:
        raise DataError(f"Holding out {share:.0%} of {count} {what} leaves the training or the held-out part empty. "
                        "Set held_out so that both parts have rows, or use more of them.")
