"""Configuration files as anybody may have written them: read as plain data, or refused in one line with the place."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from emlib.core.errors import ProfileError
from emlib.core.plain_yaml import BYTES, DEPTH, as_yaml, parse_yaml, read_yaml

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 27))
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n}\n  <<: [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 26))
BAD: list[tuple[str | bytes, int, str]] = [
    ("name: a\nvisitors: 1\nname: b\n", 3, "name"),
    ("pond:\n  depth: 1\n  depth: 2\n", 3, "depth"),
    ("name: a\nponds: [1\n", 2, "flow sequence"),
    ("name: a\n\tvisitors: 1\n", 2, ""),
    ("name: a\n  visitors: 1\n", 2, "mapping values"),
    ("name: 'a\n", 1, "quoted scalar"),
    ("name: !!python/name:os.system a\n", 1, "python/name:os.system"),
    ("name: !mine a\n", 1, "!mine"),
    ("a: 1\nb: !!binary aGk=\n", 2, "binary"),
    ("a: !!set {x, y}\n", 1, "the type set"),
    ("a: 1\nb: !!int abc\n", 2, "'abc' is not of the type int"),
    ("a: !!int ''\n", 1, "type int"),
    ("a: !!float abc\n", 1, "type float"),
    ("a: !!bool perhaps\n", 1, "type bool"),
    ("a: 1\nb: " + "9" * 5000 + "\n", 2, "type int"),
    ("a: " + "9" * 4000 + "\n", 1, "too large"),
    ("a: 9223372036854775808\n", 1, "too large"),
    ("a: 0x" + "f" * 3000 + "\n", 1, "too large"),
    ("a: .nan\n", 1, "not finite"),
    ("a: [1, -.inf]\n", 1, "not finite"),
    ("a: 1\nb: 1e999\n", 2, "not finite"),
    ("? [a, b]\n: 1\n", 1, "a key that is a list"),
    ("? {a: 1}\n: 1\n", 1, "a key that is a list or a mapping"),
    ("a: [" + "[" * 100_000, 1, "nested more than 30 deep"),
    ("".join("  " * n + "a:\n" for n in range(900)), DEPTH, "nested more than 30 deep"),
    ("- " * 2000 + "a\n", 1, "nested more than 30 deep"),
    (LAUGHS, 15, "values"),
    (MERGES, 16, "values"),
    ("pond: &a {depth: *a}\n", 1, "inside what it stands for"),
    ("a: *b\n", 1, "undefined alias"),
    ("a: 1\n---\nb: 2\n", 2, "another document"),
    (b"name: a\nb: \xff\n", 2, "0xff"),
    (b"\x7fELF\x02\x01\x01\x00", 1, "U+007F"),
    ("a: 1\nb: \x07\n", 2, "U+0007"),
    ("a: '\ud800'\n".encode("utf-8", "surrogatepass"), 1, "UTF-8"),
    ("- a\n" * (BYTES // 4), 20_002, "values"),
]


def written(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "zoo.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(("content", "line", "words"), BAD, ids=lambda part: repr(part)[:20])
def test_a_file_that_is_no_plain_data_is_one_line_with_the_file_and_its_line(
        tmp_path: Path, content: str | bytes, line: int, words: str) -> None:
    path = written(tmp_path, content)
    began = time.process_time()
    with pytest.raises(ProfileError) as caught:
        read_yaml(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line {line}: ")
    assert words in message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 400
    assert time.process_time() - began < 60  # and not hours, as one that multiplies would


def test_a_file_that_is_far_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "zoo.yaml"
    with path.open("wb") as out:
        out.truncate(100_000_000)
    with pytest.raises(ProfileError, match=r"zoo\.yaml: the file has more than 1,000,000 bytes"):
        read_yaml(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "zoo.yaml", tmp_path):
        with pytest.raises(ProfileError, match="there is no such file"):
            read_yaml(path)


def test_a_value_that_stands_twice_is_written_twice() -> None:
    shared = [{"kind": "kl"}]
    text = as_yaml({"first": shared, "second": shared})
    assert text == "first:\n- kind: kl\nsecond:\n- kind: kl\n"


def test_numbers_and_words_are_read_as_yaml_1_2_has_them(tmp_path: Path) -> None:
    read = read_yaml(written(
        tmp_path, "a: 1e-4\nb: no\nc: 0.5\nd: 0o10\ne: true\nf: 2026-11-23\ng: ~\n2026-13-45: x\n"))
    assert read == {"a": 0.0001, "b": "no", "c": 0.5, "d": 8, "e": True, "f": "2026-11-23", "g": None,
                    "2026-13-45": "x"}
    assert type(read["a"]) is float


def test_anchors_aliases_and_merge_keys_of_ordinary_size_are_read() -> None:
    text = "base: &base {a: 1, b: [1, 2]}\nother:\n  <<: *base\n  a: 3\nlist: [*base, *base]\n&key k: &v 1\nw: *v\n"
    assert parse_yaml(text, "here") == {
        "base": {"a": 1, "b": [1, 2]}, "other": {"a": 3, "b": [1, 2]}, "list": [{"a": 1, "b": [1, 2]}] * 2, "k": 1,
        "w": 1}
    assert parse_yaml("\ufeffa: 1\n", "here") == {"a": 1}
    assert parse_yaml("", "here") is None
