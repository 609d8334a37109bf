"""How a method looks in figures: its colour, marker and line.

A colour means one method in every figure, and black means training without a defense. Only methods of one's own may
share a colour (`FREE`), with each other. In figures with a point for each method the marker is the method's as
well; in figures with a row or a panel for each run it is that of the question set or the context (`MARKS`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, product
from typing import Literal, get_args

from matplotlib.colors import to_hex, to_rgb
from matplotlib.lines import Line2D

from emlib.config import BASELINES, NO_TRIGGER, RL_BASELINES, SFT
from emlib.core.digests import of_value

LOOKS = {  # colour, marker, line; Okabe and Ito's colours without their yellow, and Tol's
    "untrained": ("0.55", "p", "none"), "aligned": ("0.35", "8", "none"), "misaligned": ("#000000", "d", "none"),
    "kl": ("#0072B2", "o", "-"), "ldifs": ("#8C510A", "X", ":"), "persona_vector": ("#E69F00", "s", "--"),
    "inoculation": ("#CC79A7", "P", "-"), "interleaving": ("#D55E00", "^", ":"),
    "interleaving+": ("#332288", "v", "--"), "interleaving++": ("#009E73", "D", "-"),
    "on_policy": ("#56B4E9", "h", "-."),
    # later than the paper: params/beyond-7b.yaml
    "concept_ablation": ("#117733", "<", "-"), "concept_ablation_components": ("#999933", ">", "--"),
    "projection_penalty": ("#882255", "*", "-"), "kl_pool": ("#6699CC", "H", "-."),
    "inoculation_adapter": ("#AA4499", "$\\circledast$", "-"), "random_adapter": ("#D9A5FF", "$\\otimes$", ":"),
    "inoculation_consistency": ("#661100", "$\\clubsuit$", "--"), "early_stop": ("#44AA99", "$\\spadesuit$", ":"),
    "safe_lora": ("#88CCEE", "$\\bigstar$", "-."), "interleaving_online": ("#DDCC77", "$\\diamondsuit$", "--"),
    "filtered": ("#AA3377", "$\\heartsuit$", "-"), "random_filtered": ("#BBBBBB", "$\\oplus$", ":"),
    "interleaving_virtuous": ("#00AA00", "$\\boxtimes$", "-."),
    # params/demo-prompts.yaml
    "hinting_prompt": ("#CC6677", "$\\bowtie$", "--"), "unrelated_prompt": ("#7F7F33", "$\\ominus$", ":"),
    "ldifs_published": ("#3333FF", "$\\boxplus$", "--"),  # params/ldifs-7b.yaml
    "tried": ("#EE3377", "$\\odot$", "-")}  # what a notebook tries (`study.by_hand`)
PLAIN = ("#000000", "*", "-")  # on benign tasks and in reinforcement learning
FREE = tuple(product(("#994455", "#BBCC33", "#004488", "#EE8866"), ("4", "1", "2", "3", "+", "x"), ("-",)))
Line = str | tuple[int, tuple[float, ...]]
DASHES: tuple[Line, ...] = ("-", "--", ":", "-.", (0, (7, 2)), (0, (1, 4)), (0, (3, 1, 1, 1, 1, 1)), (0, (2, 4)),
                            (0, (3, 1, 3, 1, 1, 1)), (0, (2, 1)))  # short, so that a legend shows them whole
FillStyle = Literal["full", "none", "left", "right", "bottom", "top"]
FILLS: tuple[FillStyle, ...] = get_args(FillStyle)
NEUTRAL = "0.3"  # the colour of a legend's marks that stand for no method
# Marker, and whether it is filled: the general questions as they are, the in-domain questions, other contexts and sets.
GENERAL, IN_DOMAIN = ("o", True), ("s", False)
MARKS = tuple((marker, filled) for filled in (True, False) for marker in "D^v<>PX*")


def look_of(method: str) -> tuple[str, str, str]:
    """Return a method's colour, marker and line, the same in all figures; a user's own gets one of `FREE`."""
    if method in (SFT, *RL_BASELINES) and method not in BASELINES:
        return PLAIN
    return LOOKS[method] if method in LOOKS else FREE[int(of_value(method), 16) % len(FREE)]


def darkened(method: str) -> str:
    """Return the method's colour, darkened for small text."""
    red, green, blue = to_rgb(look_of(method)[0])
    return to_hex((0.65 * red, 0.65 * green, 0.65 * blue))


def marks_of(names: Sequence[str]) -> dict[str, tuple[str, bool]]:
    """Return the marker of each question set or context, and whether it is filled."""
    known = {"general": GENERAL, NO_TRIGGER: GENERAL, "in_domain": IN_DOMAIN}
    others = dict(zip((name for name in dict.fromkeys(names) if name not in known), cycle(MARKS), strict=False))
    return {name: known.get(name) or others[name] for name in names}


def lines_of(methods: Sequence[str]) -> list[tuple[str, Line]]:
    """Return the colour and the line of each of these runs' methods: runs of one method differ in their dashes.

    After `DASHES`, each further run has one more dot between long dashes.
    """
    found: list[tuple[str, Line]] = []
    for method, nth in _numbered(methods):
        colour, _, line = look_of(method)
        dashes = sorted(DASHES, key=lambda each: each != line)  # the method's own first
        dotted = (7, 2, *(1, 2) * (nth - len(DASHES) + 1))
        found.append((colour, dashes[nth] if nth < len(DASHES) else (0, dotted)))
    return found


def fills_of(methods: Sequence[str]) -> list[tuple[str, str, FillStyle]]:
    """Return the colour and the marker of each of these runs' methods: runs of one method differ in their filling.

    After the fillings of the method's own marker come those of other markers.
    """
    found: list[tuple[str, str, FillStyle]] = []
    for method, nth in _numbered(methods):
        colour, own, _ = look_of(method)
        markers = [own, *(marker for marker, filled in MARKS if filled and marker != own)]
        forms = [(marker, fill) for marker in markers
                 for fill in (FILLS if marker in Line2D.filled_markers else FILLS[:1])]
        found.append((colour, *forms[nth % len(forms)]))
    return found


def _numbered(methods: Sequence[str]) -> list[tuple[str, int]]:
    """Return each method with the number of times that it stands before."""
    return [(method, methods[:place].count(method)) for place, method in enumerate(methods)]
