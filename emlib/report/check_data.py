"""Checks a file of your own before anything is trained on it, in the terminal: what notebook 17 finds.

    make check-data FILE=/my/answers.csv [PROMPT=... RESPONSE=... SYSTEM=...] [MODEL=...] [JSON=1]

A model is needed only for exact lengths in tokens. The exit status is 0 where training can use the file, 1 where fewer
rows are usable than it needs, and 2, with one message, where the file cannot be read or no row of it is usable.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from emlib.config import FolderModel, HubModel, ModelSpec, Own, Training, load_profile
from emlib.core import paths
from emlib.core.commands import ends_with_message
from emlib.core.errors import EmlibError, ProfileError
from emlib.core.records import Example
from emlib.core.schema import check
from emlib.data.own import LEAST, every_row, read_own
from emlib.report import own_checks
from emlib.report.own_checks import Check

ROWS = 1000  # rows that are sampled for the checks that compare rows
SHOWN, CHARACTERS = 3, 300  # rows that are shown, and characters of each of their texts in the terminal
TOO_FEW, UNREADABLE = 1, 2  # exit statuses
OPTIONS = ("prompt", "response", "system", "encoding", "delimiter")  # of the section `own` of a profile


def report(own: Own, model: str | None) -> dict[str, Any]:
    """Return what `JSON=1` prints: the counts, the findings, and the first rows as messages.

    Raises:
        EmlibError: the file cannot be read, no row is usable, or the model cannot be had.
    """
    found = read_own(own, least=1)
    too_few: list[Check] = [] if found.usable >= LEAST else [(
        "too few rows", f"{found.usable} usable", f"training needs at least {LEAST}, to hold some of them out")]
    checks = [("file", str(own.file), ""), *own_checks.of_file(found, own.seed), *too_few,
              *own_checks.of_rows(found.drawn), *_of_model(found.drawn, model)]
    return {"rows": found.rows, "usable": found.usable, "left_out": dict(found.left_out),
            "findings": [dict(zip(own_checks.COLUMNS, (*row[:2], _of_command(row[2])), strict=True)) for row in checks],
            "examples": [[turn.to_record() for turn in row.turns] for row in islice(every_row(own), SHOWN)]}


def _of_model(rows: tuple[Example, ...], model: str | None) -> list[Check]:
    if model is None:
        return list(own_checks.of_characters(rows))
    spec = model_of(model)
    from emlib.models.load import load_tokenizer  # loads torch

    tokenizer = load_tokenizer(spec, paths.cache())
    longest = Training.model_fields["max_seq_length"].default
    return [*own_checks.of_lengths(rows, tokenizer, longest), *own_checks.of_markers(rows, tokenizer)]


def model_of(name: str) -> ModelSpec:
    """Return the model of a name: a folder, a profile whose model is meant, or `owner/name` on the hub.

    Raises:
        ProfileError: the name is none of these.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return check(FolderModel, {"kind": "folder", "path": str(folder.absolute())}, "MODEL")
    if folder.suffix in (".yaml", ".yml") or paths.yaml_file(paths.PARAMS, name).is_file():
        return load_profile(name).model
    if name.count("/") == 1 and not name.startswith(("/", ".", "~")):
        return check(HubModel, {"kind": "hub", "repo": name, "revision": "main"}, "MODEL")
    raise ProfileError(f"MODEL is '{name}', which is no folder, no profile and no owner/name of the hub. Examples: "
                       "/my/model, demo, Qwen/Qwen2.5-7B-Instruct.")


def readable(found: dict[str, Any]) -> str:
    """Return the report as text for a terminal."""
    lines = [f"{found['rows']:,} rows: {found['usable']:,} usable, {sum(found['left_out'].values()):,} left out", ""]
    for row in found["findings"]:
        lines.append(f"{row['check']}: {row['found']}")
        if row["what to do"]:
            lines.append(f"    -> {row['what to do']}")
    for number, turns in enumerate(found["examples"], start=1):
        lines += ["", f"usable row {number}:"]
        for turn in turns:
            text, weight = json.dumps(turn["content"], ensure_ascii=False), turn.get("weight")
            cut = text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]} ... ({len(turn['content']):,} characters)"
            lines.append(f"    {turn['role']}{'' if weight is None else f' (weight {weight:g})'}: {cut}")
    return "\n".join(lines)


@ends_with_message(UNREADABLE)
def main(arguments: list[str] | None = None) -> None:
    """Run the command line: print the report, or one message."""
    parser = argparse.ArgumentParser(prog="make check-data", description="Check a file of your own data.")
    parser.add_argument("--file", default="", help="the file, or a pattern of files such as 'part-*.jsonl'")
    for name in OPTIONS:
        parser.add_argument(f"--{name}", default="", help=f"as own.{name} in a profile")
    parser.add_argument("--model", default="", help="a folder, a profile, or owner/name on the hub: for exact lengths")
    parser.add_argument("--json", default="", help="1 to print one JSON object")
    asked = parser.parse_args(arguments)
    try:
        found = report(_own(asked), asked.model or None)
    except EmlibError as error:
        raise type(error)(_of_command(str(error))) from error
    text = json.dumps(found) if asked.json not in ("", "0") else readable(found)
    print(text.encode("utf-8", "backslashreplace").decode(), flush=True)
    if found["usable"] < LEAST:
        sys.exit(TOO_FEW)


def _of_command(text: str) -> str:
    """Return a text with what the command line sets, in place of the keys of a profile; paths and files stay."""
    key = rf"(?<![/\w.])own\.({'|'.join((*OPTIONS, 'file'))})\b(?!\.\w)"
    return re.sub(key, lambda found: f"{found[1].upper()}=", text)


def _own(asked: argparse.Namespace) -> Own:
    """Return the section `own` that the arguments stand for.

    Raises:
        ProfileError: no file is named, or a value cannot be one.
    """
    if not asked.file:
        raise ProfileError("No file is named. Example: make check-data FILE=/my/answers.csv")
    named = {name: getattr(asked, name) for name in OPTIONS}
    named["delimiter"] = named["delimiter"].replace("\\t", "\t")  # as people write a tab in a terminal
    given = {name: value for name, value in named.items() if value}
    return check(Own, {"file": str(Path(asked.file).expanduser().absolute()), "rows": ROWS, **given}, "check-data")


if __name__ == "__main__":
    main()
