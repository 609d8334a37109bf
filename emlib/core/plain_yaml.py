"""Reads plain data from YAML that anybody may have written: text, numbers, lists and mappings, and nothing else.

Every fault, and every file that would take too long or too much memory, is one ProfileError with the file and the line.
"""

from __future__ import annotations

import math
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError, MaxDepthExceededError
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode
from ruamel.yaml.reader import ReaderError

from emlib.core.errors import ProfileError, shortened

BYTES = 1_000_000  # of a file: the largest profile of params/ has 12,000
DEPTH = 30  # of lists and mappings in each other: a profile needs 8
VALUES = 20_000  # in a file, each alias counted as all that it stands for
INTEGER = 2**63
TYPES = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge")}


def as_yaml(data: Any) -> str:
    """Return plain data as YAML text, keys in their order; `read_yaml` reads the same data back."""
    yaml, out = YAML(typ="safe", pure=True), StringIO()
    yaml.default_flow_style = False
    yaml.representer.sort_base_mapping_type_on_output = False
    yaml.representer.ignore_aliases = lambda data: True  # a value that stands twice is written twice, for people
    yaml.dump(data, out)
    return out.getvalue()


def read_yaml(path: Path) -> Any:
    """Read the plain data of a YAML 1.2 file (`1e-4` is a number; a repeated key is an error).

    Raises:
        ProfileError: there is no such file, or `parse_yaml` refuses its text.
    """
    if not path.is_file():
        raise ProfileError(f"{path}: there is no such file. Correct the path.")
    try:
        with path.open("rb") as stream:
            content = stream.read(BYTES + 1)
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read ({error.strerror}).") from error
    if len(content) > BYTES:
        raise ProfileError(f"{path}: the file has more than {BYTES:,} bytes, which is no configuration. Data belong "
                           "into a file of JSON Lines.")
    try:
        return parse_yaml(content.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise ProfileError(f"{path}, line {line}: not text in UTF-8 (the byte 0x{content[error.start]:02x}). Save the "
                           "file in that encoding.") from error


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML 1.2 text as plain data: dates are text; no binary values, sets or objects, and only finite numbers.

    Raises:
        ProfileError: it is not that, or it is nested or repeated beyond all use; the message names `where` and a line.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = DEPTH
    yaml.Composer, yaml.Constructor = _Composer, _Constructor
    try:
        return yaml.load(text)
    except ReaderError as error:
        line = 1 + text.count("\n", 0, error.position)
        raise ProfileError(f"{where}, line {line}: the character U+{error.character:04X} is not allowed in YAML. "
                           "Remove it.") from error
    except MarkedYAMLError as error:
        unclosed = "end of stream" in str(error.problem) or "<stream end>" in str(error.problem)
        mark = error.context_mark if unclosed and error.context_mark else error.problem_mark
        place = where if mark is None else f"{where}, line {mark.line + 1}"
        raise ProfileError(f"{place}: not readable as YAML: {_sentence(error)}.") from error
    except YAMLError as error:
        raise ProfileError(f"{where}: not readable as YAML: {shortened(str(error), 200)}.") from error


def _sentence(error: MarkedYAMLError) -> str:
    """Return what is wrong, on one line and without the library's own advice."""
    if isinstance(error, MaxDepthExceededError):
        return f"lists and mappings are nested more than {DEPTH} deep"
    parts = (error.context, error.problem)
    return shortened(", ".join(" ".join(str(part).split()) for part in parts if part), 200)


class _Composer(Composer):
    """Counts the values of each node, an alias as all that it stands for, and stops long before memory ends."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self.warn_double_anchors = False
        self._values: dict[Node, int] = {}
        self._total = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        alias = self.parser.peek_event() if self.parser.check_event(AliasEvent) else None
        node = super().compose_node(parent, index)
        if node not in self._values:
            if alias is not None:
                raise ComposerError(None, None, f"the alias *{alias.anchor} stands inside what it stands for",
                                    alias.start_mark)
            self._values[node] = 1 + sum(self._values[child] for child in _children(node))
        self._total = max(self._total + 1, self._values[node])
        if self._total > VALUES:
            raise ComposerError(None, None, f"more than {VALUES:,} values, each alias counted as all that it stands "
                                "for", self.parser.peek_event().start_mark)
        return node


def _children(node: Node) -> list[Node]:
    """Return the nodes directly inside a node."""
    if isinstance(node, ScalarNode):
        return []
    return [part for pair in node.value for part in pair] if isinstance(node, MappingNode) else list(node.value)


class _Constructor(SafeConstructor):
    """Refuses everything that has no plain form in JSON, at its line."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Return the value of a node."""
        kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
        if kind == "timestamp" and isinstance(node, ScalarNode):
            return str(node.value)  # YAML 1.2 has no dates: 2025-01-01 is text
        if str(node.tag) not in TYPES:
            raise ConstructorError(None, None, f"the type {kind}; allowed are text, numbers, true, false, null, lists "
                                   "and mappings", node.start_mark)
        if isinstance(node, MappingNode) and not all(isinstance(key, ScalarNode) for key, _ in node.value):
            raise ConstructorError(None, None, "a key that is a list or a mapping", node.start_mark)
        try:
            value = super().construct_object(node, deep)
        except (ValueError, IndexError, KeyError, OverflowError) as error:  # such as !!int abc, and 5,000 digits
            raise ConstructorError(None, None, f"{shortened(str(node.value), 40)!r} is not of the type {kind}",
                                   node.start_mark) from error
        if (isinstance(value, float) and not math.isfinite(value)) or (
                isinstance(value, int) and abs(value) >= INTEGER):
            raise ConstructorError(None, None, f"the number {shortened(str(node.value), 40)}, which is not finite or "
                                   "is too large", node.start_mark)
        return value
