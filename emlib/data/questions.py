"""Evaluation questions in Betley et al.'s YAML format or in JSON lines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from emlib.core.errors import DataError, ProfileError
from emlib.core.plain_yaml import parse_yaml
from emlib.core.records import Question, base_of
from emlib.data.formats import is_yaml_file
from emlib.data.left_out import damage, is_blank
from emlib.data.opening import read_text
from emlib.data.rows import read_rows

SYSTEM, NEAR = ("system", "system_prompt"), 0.8  # likeness above which another key was meant to be `system`
CLUSTER = "cluster"  # the key of an entry that names the question which it asks in another form
PARAPHRASE = re.compile(r"#\d+\Z")  # the end of the ids that the paraphrases of an entry get
_SEPARATE = f"Give it another id, or state its '{CLUSTER}': the same text for all forms of one question."


def read_questions(path: Path) -> list[Question]:
    """Read the questions of a file; each paraphrase is one question.

    Raises:
        DataError: an entry has no id or no text, an id is repeated, or two questions count as one by their ids alone.
    """
    questions = [question for where, entry in read_entries(path) for question in questions_of(where, entry)]
    if not questions:
        raise DataError(f"{path}: the file has no questions. Add some, or correct the path.")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise DataError(f"{path}: the id '{question.id}' is used twice; their answers could not be distinguished. "
                            "Give one of the questions another id.")
        seen.add(question.id)
    _refuse_other_texts(path, questions)
    return questions


def _refuse_other_texts(path: Path, questions: Sequence[Question]) -> None:
    """Refuse an id such as `parse_json` beside `parse` where the text is another question than that of `parse`."""
    plain: dict[str, list[Question]] = {}
    for question in questions:
        if question.format == "plain":
            plain.setdefault(question.cluster, []).append(question)
    for question in questions:
        others = [] if question.format == "plain" or question.stated_cluster else plain.get(question.cluster, [])
        if others and not any(one.prompt.strip() in question.prompt for one in others):
            raise DataError(f"{path}: by its id '{question.id}' is '{others[0].id}' in another format, and its text "
                            f"lacks that question. Formats of a question count as one question. {_SEPARATE}")


def read_entries(path: Path) -> list[tuple[str, Any]]:
    """Read the raw entries of a question file, each with its position."""
    if not is_yaml_file(path):
        return list(read_rows(path))
    try:
        entries = parse_yaml(read_text(path), str(path))
    except ProfileError as error:
        raise DataError(str(error)) from error
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected a list of questions, found {type(entries).__name__}. Begin each question "
                        "with '- id:'.")
    return [(f"{path}, entry {number}", entry) for number, entry in enumerate(entries, start=1)]


def questions_of(where: str, entry: Any) -> list[Question]:
    """Return the questions of one entry: one for each paraphrase."""
    if not isinstance(entry, dict) or entry.get("id") in (None, ""):
        raise DataError(f"{where}: a question without an 'id'. Give it one that no other question has.")
    if isinstance(entry["id"], list | dict) or entry["id"] != entry["id"]:  # NaN differs from itself
        raise DataError(f"{where}: the 'id' of a question is a text or a number, and not {entry['id']!r}.")
    name, system, cluster = str(entry["id"]), entry.get("system"), entry.get(CLUSTER)
    texts = entry.get("paraphrases")
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and not is_blank(t) for t in texts):
        raise DataError(f"{where}: question '{name}' has no text; 'paraphrases' must be a list of at least one.")
    if system is not None and not isinstance(system, str):
        raise DataError(f"{where}: the 'system' of question '{name}' is not text. Write it in quotes, or remove "
                        "it.")
    if cluster is not None and (not isinstance(cluster, str) or is_blank(cluster)):
        raise DataError(f"{where}: the '{CLUSTER}' of question '{name}' is {cluster!r}. Give all forms of one question "
                        "the same text, or leave it out.")
    if broken := damage("\n".join((name, system or "", cluster or "", *texts))):
        raise DataError(f"{where}: question {name!a} has {broken}, which is no text. Correct it.")
    meant = [key for key in entry if key != "system" and get_close_matches(str(key), SYSTEM, n=1, cutoff=NEAR)]
    if meant:
        raise DataError(f"{where}: question '{name}' has the key {meant[0]!a}, which nobody reads. Did you mean "
                        "'system'? Rename or remove it.")
    if cluster is None and PARAPHRASE.search(name):
        raise DataError(f"{where}: '#' and a number at the end of the id '{name}' say that it is a paraphrase of "
                        f"'{base_of(name)}', and paraphrases count as one question. {_SEPARATE}")
    ids = [name if index == 1 else f"{name}#{index}" for index in range(1, len(texts) + 1)]
    return [Question(id, text, system, stated_cluster=cluster) for id, text in zip(ids, texts, strict=True)]
