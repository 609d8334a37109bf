"""The text of every file that git tracks: no merge was left half done, and sections of profiles in docs/ load."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from emlib.config import load_profile, overridden
from emlib.core import digests, paths
from emlib.core.hooks import FINE_TUNING, GRPO

# Said by counts, so that this line is no marker itself. `|||||||` stands between them where git shows the base as well.
MARKER = re.compile(rb"^(?:<{7} .*|\|{7} .*|={7}|>{7} .*)\r?$", re.MULTILINE)


def marked(content: bytes) -> list[int]:
    """The lines, counted from 1, that mark two sides of a merge; none in a binary file, which git never marks."""
    if b"\0" in content:
        return []
    return [content.count(b"\n", 0, found.start()) + 1 for found in MARKER.finditer(content)]


def tracked() -> list[str]:
    """The files that git tracks, as it names them."""
    listed = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True, text=True, cwd=paths.ROOT)
    return [name for name in listed.stdout.split("\0") if name]


def test_no_tracked_file_has_merge_markers() -> None:
    if shutil.which("git") is None or not (paths.ROOT / ".git").exists():  # in a second working tree it is a file
        pytest.skip("without git, or outside a checkout, nothing tells which files are of the project")
    files = [name for name in tracked() if (paths.ROOT / name).is_file()]  # one may be deleted and not yet committed
    assert "pyproject.toml" in files
    found = {name: lines for name in files if (lines := marked((paths.ROOT / name).read_bytes()))}
    assert not found, "merge these by hand, and delete the marking lines"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_markers_are_found_and_what_only_looks_like_them_is_not(end: str) -> None:
    ours, base, between, theirs = (sign * 7 for sign in "<|=>")
    lines = ["one", f"{ours} HEAD", "two", f"{base} 1a2b3c4", between, "three", f"{theirs} branch", ""]
    assert marked(end.join(lines).encode()) == [2, 4, 5, 7]
    assert marked(between.encode()) == [1]
    harmless = [f" {ours} HEAD", f"{ours}< x", f"{between}=", f"{between} x", f"x {theirs} y", theirs[1:], "====="]
    assert marked(end.join(harmless).encode()) == []
    assert marked(f"\0{end}{between}{end}".encode()) == []


SHOWN = re.compile(r"^```yaml\n((?:monitor|persistence|audit):.*?)^```", re.DOTALL | re.MULTILINE)


def test_sections_that_the_docs_show_load_in_the_papers_profile(tmp_path: Path) -> None:
    """Which also refuses what the profile has already, such as its own trait as a further one of the monitor."""
    shown = SHOWN.findall((paths.ROOT / "docs" / "questions-and-measures.md").read_text(encoding="utf-8"))
    assert [section.partition(":")[0] for section in shown] == ["persistence", "monitor", "audit"]
    for number, section in enumerate(shown):
        profile = tmp_path / f"shown{number}.yaml"
        profile.write_text(f"extends: paper-7b\n{section}", encoding="utf-8")
        assert getattr(load_profile(str(profile)), section.partition(":")[0]) is not None


def page(name: str) -> str:
    """A page's text, on one line, as sentences are broken anywhere."""
    return " ".join((paths.ROOT / name).read_text(encoding="utf-8").replace('\\n",\n    "', " ").split())


@pytest.mark.parametrize("name", ["docs/defense-options.md", "notebooks/18_your_own_defense.ipynb"])
def test_the_hooks_that_grpo_refuses_are_named(name: str) -> None:
    """Those that fine-tuning alone calls; `change_rows` may stay (`emlib.core.of_kind`)."""
    *others, last = [f"`{hook}`" for hook in FINE_TUNING if hook not in (*GRPO, "change_rows")]
    assert f"A class that overrides {', '.join(others)} or {last} is refused" in page(name)


def test_the_study_that_the_docs_name_has_the_digest_of_its_overrides() -> None:
    text = page("docs/write-a-profile.md")
    [overrides] = re.findall(r'make plan PROFILE=paper-7b SET="(.*?)"', text)
    _, changes = overridden("paper-7b", overrides)
    assert f"`runs/paper-7b+{digests.of_value(changes)[:6]}/`" in text
