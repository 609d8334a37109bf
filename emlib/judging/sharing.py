"""Judge scores as a file that a group can share: Parquet or JSON lines, by the file's extension.

    python -m emlib.judging.sharing export scores.parquet
    python -m emlib.judging.sharing import scores.parquet

A file holds keys and scores, and no text of a question, an answer or a rubric. An import keeps existing scores.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from emlib.core.commands import ends_with_message
from emlib.core.errors import DataError
from emlib.core.files import whole_file, write_objects
from emlib.core.names import is_name
from emlib.data.rows import read_rows
from emlib.judging.cache import COLUMNS, Cache, Row
from emlib.judging.judges import scores_file

ENDINGS = (".parquet", ".jsonl")
KEY = re.compile(r"[0-9a-f]{64}")
ROUNDING = 1e-4  # by which the probabilities that a local judge adds up may exceed 1


def export(cache: Cache, path: Path) -> int:
    """Write all scores to a file; return how many."""
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in cache.rows()]
    if _ending(path) == ".parquet":
        with whole_file(path) as temporary:
            pd.DataFrame(rows, columns=list(COLUMNS)).to_parquet(temporary, index=False)
    else:
        write_objects(path, rows)
    return len(rows)


def import_(cache: Cache, path: Path) -> int:
    """Read the scores of a file; return how many were new. A file with an invalid row changes nothing.

    Raises:
        DataError: `export` did not write the file, or a row is not a valid score; the message names the row.
    """
    found = read_rows(path) if _ending(path) == ".jsonl" else _parquet(path)
    return cache.add([checked(where, row) for where, row in found])


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row's position and its values, None for empty ones."""
    try:
        frame = pd.read_parquet(path).astype(object)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. Check the path.") from error
    except (ValueError, OSError) as error:  # pyarrow's errors are both
        raise DataError(f"{path}: not readable as Parquet ({error}). Expected a file that `export` wrote.") from error
    for number, row in enumerate(frame.where(frame.notna(), None).to_dict("records"), start=1):
        yield f"{path}:{number}", {str(name): value for name, value in row.items()}


def checked(where: str, of: dict[str, Any]) -> Row:
    """Return the values of a row, after checking that they are a valid score.

    Raises:
        DataError: they are not; the message begins with `where`.
    """
    missing = [column for column in COLUMNS if column not in of]
    if missing:
        raise DataError(f"{where}: has no '{missing[0]}'. Expected a file that `export` wrote.")
    texts = all(isinstance(of[name], str) for name in ("key", "judge", "metric", "made"))
    if not (texts and KEY.fullmatch(of["key"]) and is_name(of["metric"])):
        raise DataError(f"{where}: not a score: expected a key of 64 hex digits, a judge, a metric and a date.")
    if not all(isinstance(of[name], str | None) for name in ("reason", "note")):
        raise DataError(f"{where}: 'reason' and 'note' must be texts or empty.")
    if not all(isinstance(of[name], int) and of[name] >= 0 for name in ("tokens_read", "tokens_written")):
        raise DataError(f"{where}: 'tokens_read' and 'tokens_written' must be whole numbers.")
    if of["value"] is None and not of["reason"]:
        raise DataError(f"{where}: has neither a value nor a reason.")
    for name, most, allowed in (("value", 100, 100.0), ("mass", 1, 1 + ROUNDING)):
        number = of[name]
        if number is not None and not (isinstance(number, int | float) and 0 <= number <= allowed):
            raise DataError(f"{where}: '{name}' is {number!r}; expected a number from 0 to {most}, or nothing.")
    return tuple(min(1.0, of[column]) if column == "mass" and of[column] else of[column] for column in COLUMNS)


def _ending(path: Path) -> str:
    if path.suffix not in ENDINGS:
        raise DataError(f"{path}: unknown file type. The name must end in {' or '.join(ENDINGS)}.")
    return path.suffix


@ends_with_message()
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m emlib.judging.sharing", description="Share scores of judges.")
    parser.add_argument("what", choices=("export", "import"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--scores", type=Path, help="the file of scores, instead of the study's own")
    options = parser.parse_args(arguments)
    with Cache(options.scores or scores_file()) as cache:
        if options.what == "export":
            print(f"{export(cache, options.file)} scores written to {options.file}.")
        else:
            print(f"{import_(cache, options.file)} new scores from {options.file}.")


if __name__ == "__main__":
    main()
