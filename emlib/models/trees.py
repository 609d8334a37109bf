"""Scores many continuations of a prompt at once: one pass over the prompt, then one over a tree of continuations.

Continuations share common prefixes. A node of the tree is one token; it attends only to the prompt and its ancestors,
so that its hidden state equals that of a separate pass over prompt and path. A common prefix of the prompts in a batch
is also processed once.
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
WORTHWHILE = 8  # the shortest common prefix of a batch that gets a separate pass


@dataclass(frozen=True)
class Tree:
    """Token sequences with merged common prefixes. Parents precede their children."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]  # index of each node's parent, or ROOT
    depths: tuple[int, ...]  # 1 for a first token
    paths: tuple[tuple[int, ...], ...]  # for each sequence the indices of its tokens

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Read:
    """The state of a model after a pass over a batch of prompts.

    Attributes:
        last: hidden states of the prompts' last tokens, (prompts, hidden): they predict the next token.
        attended: which positions of the cache are tokens and not padding, (prompts, length).
    """

    last: Tensor
    cache: DynamicCache
    attended: Tensor


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


def read_prompts(model: nn.Module, prompts: Sequence[Sequence[int]]) -> Read:
    """Run one pass over all prompts, padded on the left.

    Raises:
        EmlibError: some layers do not attend to the whole prompt, which a tree on the cache needs.
    """
    _refuse_partial_attention(model)
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
    """Compute the hidden states of every node after every prompt, (prompts, nodes, hidden), in one pass.

    Afterwards `read.cache` also holds the nodes and cannot be reused.
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
    """Return indices of the prompts in batches of at most `rows`, sorted by length to save padding."""
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    return [order[start:start + rows] for start in range(0, len(order), rows)]


def _common(prompts: Sequence[Sequence[int]]) -> int:
    """Return the length of the common prefix, leaving each prompt a token; 0 if it is too short for a separate pass."""
    if len(prompts) < 2:
        return 0
    first, last = min(map(list, prompts)), max(map(list, prompts))  # all others lie between these two
    most = min(map(len, prompts)) - 1
    same = next((place for place in range(most) if first[place] != last[place]), most)
    return same if same >= WORTHWHILE else 0


def _refuse_partial_attention(model: nn.Module) -> None:
    kinds = set(getattr(causal_lm(model).config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if kinds:
        raise EmlibError(f"{type(causal_lm(model)).__name__} has layers of {', '.join(sorted(kinds))}. Scoring many "
                         "continuations at once needs a model whose layers all attend to the whole prompt.")
