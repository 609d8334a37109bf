"""Opens a data file as text, compressed or not, and explains what is wrong where it is no text.

The kind of a file is the ending of its name, in any case: FORMATS lists the kinds that are read.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from emlib.core.errors import DataError

Kind = Literal["jsonl", "json", "csv", "tsv", "parquet"]
KINDS: dict[str, Kind] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv",
                          ".parquet": "parquet"}
FORMATS = ("JSON Lines (.jsonl), JSON (.json), CSV (.csv, .tsv), each also .gz, .zst, .bz2 or .xz, and Parquet "
           "(.parquet)")
MARKS = {b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xef\xbb\xbf": "utf-8-sig",
         b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # byte order marks, the longer ones first
FOREIGN = {b"version https://git-lfs": "a pointer of Git LFS and not the data. Run `git lfs pull` in its checkout",
           b"PK\x03\x04": "an Excel workbook or another zip archive. Save the table as CSV, or unpack it",
           b"\xd0\xcf\x11\xe0": "an old Excel workbook. Save the table as CSV",
           b"\x1f\x8b": "compressed by gzip. Let its name end in .gz", b"PAR1": "Parquet. Let its name end in .parquet",
           b"\x28\xb5\x2f\xfd": "compressed by zstd. Let its name end in .zst",
           b"SQLite format 3": "a database. Export the table as CSV"}
FOLDER = "a folder. Name one file, or all of its files by a pattern, such as {}/*.jsonl."
BEGINNING = 4096  # bytes that are looked at
WESTERN = "cp1252"  # the encoding of Western office programs; its bytes fit many other encodings, too
ALIKE = ("mac", "iso", "latin", "cp", "koi")  # single-byte encodings: any text in one is also valid in the others


def kind_of(path: Path) -> Kind:
    """Return the kind of a file, by the ending of its name.

    Raises:
        DataError: the ending is none of the known ones, or the path is a folder's.
    """
    if path.is_dir():
        raise DataError(f"{path}: {FOLDER.format(path)}")
    endings = [ending.lower() for ending in path.suffixes]
    packed = endings.pop() if endings and endings[-1] in OPENERS else ""
    kind = KINDS.get(endings[-1] if endings else "")
    if kind is None or (kind == "parquet" and packed):
        ending = "".join(path.suffixes[-2 if packed else -1:]) or "no ending"
        raise DataError(f"{path}: files of this kind ({ending}) are not read. Read are: {FORMATS}. Convert the file, "
                        "or correct its name.")
    return kind


def read_text(path: Path) -> str:
    """Read the text of a file in UTF-8, decompressed if the ending of its name says so.

    Raises:
        DataError: there is no such file, it is not UTF-8 text, or its archive is broken.
    """
    with opened(path) as text:
        return text.read()


@contextmanager
def opened(path: Path, encoding: str = "UTF-8") -> Iterator[IO[str]]:
    """Open a file as a stream of text with its own line ends; explain errors of its bytes.

    A byte order mark goes before `encoding` where that is UTF-8. Only data of the user's own are in another one.

    Raises:
        DataError: there is no such file, it is not text in this encoding, or its archive is broken.
    """
    try:
        "".encode(encoding)
    except (LookupError, UnicodeError) as error:  # Python has one that always fails
        raise DataError(f"own.encoding is '{encoding}', which is not a known encoding. Examples: utf-8, "
                        "cp1252.") from error
    try:
        with opened_bytes(path) as raw, io.TextIOWrapper(
                raw, _encoding(path, raw.peek(BEGINNING)[:BEGINNING], encoding), newline="") as text:
            yield text
    except UnicodeDecodeError as error:
        where, byte = f"{path}:{_line_of(path, encoding)}", f"byte {error.object[error.start]:#04x}"
        raise DataError(f"{where}: not {encoding} text ({byte}). {_likely(path)}") from error
    except UnicodeError as error:  # a UTF-16 file that stops within a character, or has no byte order mark
        raise DataError(f"{path}: not {encoding} text ({error}). {_likely(path)}") from error


@contextmanager
def opened_bytes(path: Path) -> Iterator[io.BufferedReader[Any]]:
    """Open a file as a stream of decompressed bytes.

    Raises:
        DataError: there is no such file, or its archive is broken.
    """
    try:
        with OPENERS.get(path.suffix.lower(), Path.open)(path, "rb") as raw, io.BufferedReader(raw) as stream:
            yield stream
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file. Correct its path.") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: {FOLDER.format(path)}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: a broken archive ({error}). Download or compress it again.") from error
    except OSError as error:
        broken = path.suffix.lower() in OPENERS and error.errno is None  # zstd and bz2 have no error of their own
        what = f"a broken archive ({error}). Download or compress it again" if broken else f"cannot be read ({error})"
        raise DataError(f"{path}: {what}.") from error


def _open_zstd(path: Path, mode: str) -> Any:
    import pyarrow  # takes a moment to load

    path.open(mode).close()  # Python's errors, and not pyarrow's
    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")


OPENERS: dict[str, Callable[[Path, str], Any]] = {
    ".gz": gzip.open, ".zst": _open_zstd, ".bz2": bz2.open, ".xz": lzma.open}


def _encoding(path: Path, beginning: bytes, encoding: str) -> str:
    """Return the encoding to decode with; raise DataError if the beginning shows that the file is no text in it."""
    refuse_foreign(path, beginning)
    if encoding.lower().replace("_", "-") not in ("utf-8", "utf8"):
        return encoding
    marked = next((found for mark, found in MARKS.items() if beginning.startswith(mark)), None)
    if marked is None and beginning.count(b"\0") > len(beginning) / 4:
        likely = "utf-16-le" if beginning[1:2] == b"\0" else "utf-16-be" if beginning[:1] == b"\0" else ""
        remedy = _remedy([likely]) if likely else "It does not look like text."
        raise DataError(f"{path}: not {encoding} text (it is full of zero bytes). {remedy}")
    return marked or encoding


def refuse_foreign(path: Path, beginning: bytes, but: bytes = b"") -> None:
    """Refuse a file whose first bytes show that it is of another kind than its name says, except those of `but`."""
    for magic, what in FOREIGN.items():
        if beginning.startswith(magic) and magic != but:
            raise DataError(f"{path}: {what}. Read are: {FORMATS}.")


def _line_of(path: Path, encoding: str) -> int:
    """Return the number of the first line that cannot be decoded; 1 in an encoding whose lines cannot be told apart."""
    with opened_bytes(path) as raw:
        for number, line in enumerate(raw, start=1):
            try:
                line.decode(encoding)
            except UnicodeError:
                return number
    return 1


def _likely(path: Path) -> str:
    """Guess the encoding from the file's first megabyte."""
    from charset_normalizer import from_bytes

    with opened_bytes(path) as raw:
        beginning = raw.read(2**20)
    best = from_bytes(beginning).best()
    if best is None:
        return "It does not look like text."
    names = [best.encoding]
    few = sum(byte > 127 for byte in beginning) < len(beginning) / 10  # as in texts in Latin letters
    if WESTERN not in names and (few or best.encoding.startswith(ALIKE)):
        names.append(WESTERN)
    return _remedy(names)


def _remedy(encodings: list[str]) -> str:
    return (f"It may be {' or '.join(encodings)}: then set own.encoding to that, if these are data of your own, and "
            "look at the rows in notebook 17. Convert any other file to UTF-8.")
