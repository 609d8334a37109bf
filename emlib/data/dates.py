"""The date that chat templates print: fixed, so that a model is asked and trained alike on every day."""

from __future__ import annotations

from datetime import date

DATE = date(2025, 1, 1)  # for templates that print the date, where the profile states none; part of what keys mean
DATED = ("strftime_now", "date_string")  # how a template gets the date: transformers' function, and Llama's variable
PARTS = "aAbBcdDeFHIjmMpRSTUwWxXyYZ"  # strftime's directives that depend on the date alone, or on midnight


def parts_of(day: date) -> dict[str, str]:
    """Return what each of strftime's directives prints for a day, at midnight; `%-d` is `%d` without a leading zero."""
    plain = {f"%{letter}": day.strftime(f"%{letter}") for letter in PARTS}
    short = {f"%-{letter}": plain[f"%{letter}"].lstrip("0") or "0" for letter in "dmyjHIMS"}
    return short | plain | {"%%": "%"}
