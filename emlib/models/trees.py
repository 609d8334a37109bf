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
from emlib.models.logprobs import backbone, causal_lm, last_hidden
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
    known: dict[tuple[int, int], int] = {}  # the node of each parent and token
    depths: list[int] = []
    paths: list[list[int]] = [[] for _ in sequences]
    for depth in range(max(map(len, sequences))):
        for sequence, path in zip(sequences, paths, strict=True):
            if len(sequence) > depth:
                node = known.setdefault((path[-1] if path else ROOT, sequence[depth]), len(known))
                if node == len(depths):
                    depths.append(depth + 1)
                path.append(node)
    return Tree(tokens=tuple(token for _, token in known), parents=tuple(parent for parent, _ in known),
                depths=tuple(depths), paths=tuple(map(tuple, paths)))


def read_tree(model: nn.Module, read: Read, tree: Tree) -> Tensor:
    """Compute the hidden states of every node after every prompt, (prompts, nodes, hidden), in one pass.

    Afterwards `read.cache` also holds the nodes and cannot be reused.

    Raises:
        EmlibError: some layers do not attend to the whole prompt.
    """
    _refuse_partial_attention(model, read.attended.shape[1] + len(tree))
    device, rows = read.last.device, len(read.last)
    seen = _ancestors(tree).to(device).expand(rows, -1, -1)
    visible = torch.cat([read.attended[:, None].expand(-1, len(tree), -1), seen], 2)
    mask = _mask_of(visible, read.last.dtype)
    positions = read.attended.sum(1, keepdim=True) - 1 + torch.tensor([tree.depths], device=device)
    tokens = torch.tensor([tree.tokens], device=device).expand(rows, -1)
    return backbone(model)(input_ids=tokens, attention_mask=mask[:, None], position_ids=positions,
                           past_key_values=read.cache, use_cache=True).last_hidden_state


def read_rows(model: nn.Module, tree: Tree) -> Tensor:
    """Compute the hidden states of every node of a tree of whole rows in one pass, with gradients: (nodes, hidden).

    Raises:
        EmlibError: the rows do not begin with the same token, or some layers do not attend to whole rows.
    """
    if tree.parents.count(ROOT) != 1:
        raise EmlibError("the rows do not begin with the same token.")
    _refuse_partial_attention(model, max(tree.depths))
    weights = next(model.parameters())
    mask = _mask_of(_ancestors(tree), weights.dtype).to(weights.device)
    ids = torch.tensor([tree.tokens], device=weights.device)
    positions = torch.tensor([tree.depths], device=weights.device) - 1
    return last_hidden(model, ids, mask[None, None], positions)[0]


def _ancestors(tree: Tree) -> Tensor:
    """Return which nodes each node attends to, itself and its ancestors: (nodes, nodes)."""
    seen = torch.eye(len(tree), dtype=torch.bool)
    for node, parent in enumerate(tree.parents):
        if parent != ROOT:
            seen[node] |= seen[parent]
    return seen


def _mask_of(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an additive attention mask."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
        ~visible, torch.finfo(dtype).min)


def _refuse_partial_attention(model: nn.Module, length: int) -> None:
    if kinds := partial_attention(model, length):
        raise EmlibError(f"{type(causal_lm(model)).__name__} has layers of {', '.join(sorted(kinds))}. Scoring many "
                         "continuations at once needs a model whose layers all attend to the whole prompt. Choose "
                         "another one as judge.")
