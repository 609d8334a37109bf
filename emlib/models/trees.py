"""Scores many continuations of a prompt at once: one pass over the prompt, then one over a tree of continuations.

Continuations share common prefixes. A node of the tree is one token; it attends only to the prompt and its ancestors,
so that its hidden state equals that of a separate pass over prompt and path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emlib.core.errors import EmlibError
from emlib.models.logprobs import backbone, causal_lm
from emlib.models.prompts import Read, partial_attention

ROOT = -1  # the parent of a first token: the prompt itself


@dataclass(frozen=True)
class Tree:
    """Token sequences with merged common prefixes. Parents precede their children."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]  # index of each node's parent, or ROOT
    depths: tuple[int, ...]  # 1 for a first token
    paths: tuple[tuple[int, ...], ...]  # for each sequence the indices of its tokens

    def __len__(self) -> int:
        return len(self.tokens)


def tree_of(sequences: Sequence[Sequence[int]]) -> Tree:
    """Build the tree of all `sequences`, breadth first.

    Raises:
        EmlibError: one of them is empty.
    """
    if not all(sequences):
        raise EmlibError("a continuation without tokens has no probability.")
    known: dict[tuple[int, ...], int] = {}
    for depth in range(1, max(map(len, sequences)) + 1):
        for sequence in sequences:
            if len(sequence) >= depth:
                known.setdefault(tuple(sequence[:depth]), len(known))
    return Tree(
        tokens=tuple(path[-1] for path in known), parents=tuple(known.get(path[:-1], ROOT) for path in known),
        depths=tuple(map(len, known)),
        paths=tuple(tuple(known[tuple(s[:depth])] for depth in range(1, len(s) + 1)) for s in sequences))


def read_tree(model: nn.Module, read: Read, tree: Tree) -> Tensor:
    """Compute the hidden states of every node after every prompt, (prompts, nodes, hidden), in one pass.

    Afterwards `read.cache` also holds the nodes and cannot be reused.

    Raises:
        EmlibError: some layers do not attend to the whole prompt.
    """
    _refuse_partial_attention(model, read.attended.shape[1] + len(tree))
    device, rows = read.last.device, len(read.last)
    seen = torch.eye(len(tree), dtype=torch.bool)
    for node, parent in enumerate(tree.parents):
        if parent != ROOT:
            seen[node] |= seen[parent]
    visible = torch.cat([read.attended[:, None].expand(-1, len(tree), -1), seen.to(device).expand(rows, -1, -1)], 2)
    dtype = read.last.dtype
    mask = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, torch.finfo(dtype).min)
    positions = read.attended.sum(1, keepdim=True) - 1 + torch.tensor([tree.depths], device=device)
    tokens = torch.tensor([tree.tokens], device=device).expand(rows, -1)
    return backbone(model)(input_ids=tokens, attention_mask=mask[:, None], position_ids=positions,
                           past_key_values=read.cache, use_cache=True).last_hidden_state


def by_length(prompts: Sequence[Sequence[int]], rows: int) -> list[list[int]]:
    """Return indices of the prompts in batches of at most `rows`, sorted by length to save padding."""
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    return [order[start:start + rows] for start in range(0, len(order), rows)]


def _refuse_partial_attention(model: nn.Module, length: int) -> None:
    if kinds := partial_attention(model, length):
        raise EmlibError(f"{type(causal_lm(model)).__name__} has layers of {', '.join(sorted(kinds))}. Scoring many "
                         "continuations at once needs a model whose layers all attend to the whole prompt.")
