"""Many continuations of one prompt, read together: the prompt once, then all continuations as a tree on its cache.

Continuations that begin alike share their beginning. A node of the tree is one token; it sees the prompt and its own
ancestors, and nothing else, so that its hidden state is that of a pass of its own over prompt and path. What several
prompts of a batch have in common at their start is read once, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from emlib.core.errors import EmlibError
from emlib.models.logprobs import backbone, causal_lm

ROOT = -1  # the parent of a first token: the prompt itself
WORTHWHILE = 8  # tokens that a batch must have in common to be read apart


@dataclass(frozen=True)
class Tree:
    """Token sequences with their common beginnings merged. Parents stand before their children."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]  # place of each node's parent, or ROOT
    depths: tuple[int, ...]  # 1 for a first token
    paths: tuple[tuple[int, ...], ...]  # for each sequence the places of its tokens

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Read:
    """What a model holds of a batch of prompts after reading them.

    Attributes:
        last: hidden states of the prompts' last tokens, (prompts, hidden): they predict the first token to come.
        attended: which places of the cache are tokens and no padding, (prompts, length).
    """

    last: Tensor
    cache: DynamicCache
    attended: Tensor


def tree_of(sequences: Sequence[Sequence[int]]) -> Tree:
    """The tree of all `sequences`, breadth first.

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


def read_prompts(model: nn.Module, prompts: Sequence[Sequence[int]]) -> Read:
    """One pass over all prompts, padded on the left.

    Raises:
        EmlibError: the model's layers do not all see the whole prompt, as a tree on its cache needs.
    """
    _sees_everything(model)
    device = next(model.parameters()).device
    common = _common(prompts)
    cache = DynamicCache()
    if common:
        shared = torch.tensor([prompts[0][:common]], device=device)
        backbone(model)(input_ids=shared, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(prompts))
    rest = [list(prompt[common:]) for prompt in prompts]
    length = max(map(len, rest))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rest], device=device)
    padding = torch.tensor([length - len(row) for row in rest], device=device)[:, None]
    places = torch.arange(common + length, device=device)
    attended = (places < common) | (places >= common + padding)  # (prompts, common + length)
    positions = (places[common:] - padding).clamp(min=common)
    hidden = backbone(model)(input_ids=ids, attention_mask=attended.long(), position_ids=positions,
                             past_key_values=cache, use_cache=True).last_hidden_state
    return Read(hidden[:, -1], cache, attended)


def read_tree(model: nn.Module, read: Read, tree: Tree) -> Tensor:
    """The hidden states of every node on top of every prompt, (prompts, nodes, hidden), in one pass.

    `read.cache` holds the nodes afterwards and is of no further use.
    """
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
    """Places of the prompts in batches of at most `rows`, the longest first, so that little is padded."""
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    return [order[start:start + rows] for start in range(0, len(order), rows)]


def _common(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, each keeping one of its own; 0 where it is not worth a pass."""
    if len(prompts) < 2:
        return 0
    first, last = min(map(list, prompts)), max(map(list, prompts))  # all others lie between these two
    most = min(map(len, prompts)) - 1
    same = next((place for place in range(most) if first[place] != last[place]), most)
    return same if same >= WORTHWHILE else 0


def _sees_everything(model: nn.Module) -> None:
    kinds = set(getattr(causal_lm(model).config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if kinds:
        raise EmlibError(f"{type(causal_lm(model)).__name__} has layers of {', '.join(sorted(kinds))}. Reading many "
                         "continuations at once needs a model whose layers all see the whole prompt.")
