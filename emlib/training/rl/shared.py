"""Log-probabilities of a step's completions on a CPU, in one pass that reads what its rows have in common once.

The completions of a group continue one prompt, and the prompts begin with the same system prompt and examples. A pass
over the tree of the rows (`emlib.models.trees`) computes the same as one over the rows, on fewer tokens: with two
groups of four completions of 32 tokens, after prompts of 105 tokens that share 80, on 390 instead of 1,096.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from emlib.generation.decoder import acts_inside
from emlib.models.kernels.packing import meets_in_attention
from emlib.models.kernels.proof import TOLERANCE
from emlib.models.logprobs import CHUNK, causal_lm, head, last_hidden
from emlib.models.prompts import partial_attention
from emlib.models.trees import Tree, read_rows, tree_of

MASKED = ("sdpa", "eager")  # transformers' attention functions that take a mask for each pair of positions
# A tree is read if it has at most this share of the rows' tokens, and so many times their pairs of positions.
TOKENS, PAIRS = 0.7, 2


def against(model: nn.Module) -> str:
    """Return why the rows of a step are not read as a tree; empty if they are, because it was tried on random rows."""
    if any(weights.device.type != "cpu" for weights in model.parameters()):
        return "it was measured on CPUs only"
    if causal_lm(model).config._attn_implementation not in MASKED or not meets_in_attention(model):
        return "its attention takes no mask for each pair of positions"
    if partial_attention(model):
        return "some layers attend to a window only"
    if any(isinstance(part, nn.Dropout) and part.p > 0 for part in model.modules()):
        return "rows that share a prompt would share its dropout"
    return _fault(model)


@torch.no_grad()
def _fault(model: nn.Module) -> str:
    """Return how hidden states of a small tree differ from those of its rows; empty if by rounding only."""
    made, words = torch.Generator().manual_seed(0), len(causal_lm(model).get_input_embeddings().weight)  # type: ignore
    begin, *ends = (torch.randint(0, words, (length,), generator=made) for length in (9, 3, 7, 5))
    rows = [torch.cat([begin, ends[0], ends[1]]), torch.cat([begin, ends[0], ends[2]]), torch.cat([begin, ends[2]])]
    tree = tree_of([row.tolist() for row in rows])
    states, alone = read_rows(model, tree), [last_hidden(model, row[None], None)[0] for row in rows]
    found = max(float((states[list(path)] - one).float().norm() / one.float().norm())
                for path, one in zip(tree.paths, alone, strict=True))
    allowed = TOLERANCE.get(states.dtype, TOLERANCE[torch.float16])
    return "" if found <= allowed else f"hidden states differ by {found:.2g} of their norm ({allowed:.2g} is allowed)"


def shared_tree(model: nn.Module, ids: Tensor, attended: Tensor) -> Tree | None:
    """Return the tree of a step's rows, or None if the rows are to be read one by one.

    That is so if something acts inside the model, as steering does, if the rows begin with different tokens, or if they
    share too little: each node is compared with all others, so that long completions cost more in a tree than in rows.
    `ids` and `attended` are those of `completion_terms`.
    """
    rows = [row[here].tolist() for row, here in zip(ids, attended.bool(), strict=True)]
    if acts_inside(model) or len({row[0] for row in rows}) > 1:
        return None
    tree, lengths = tree_of(rows), list(map(len, rows))
    pays = len(tree) <= TOKENS * sum(lengths) and len(tree)**2 <= PAIRS * sum(length**2 for length in lengths)
    return tree if pays else None


def completion_terms(model: nn.Module, tree: Tree, attended: Tensor, kept: int,
                     temperature: float) -> tuple[Tensor, Tensor]:
    """Compute log p of each completion token, and the entropy of its distribution without a gradient, in nats.

    Args:
        model: the model with its adapter; no hook acts in it.
        tree: of the rows, each a prompt and its completion; all begin with the same token.
        attended: 1 for a token and 0 for padding, which stands before prompts and behind completions: (rows, length).
        kept: the number of positions of completions at the end of each row.
        temperature: divides the logits.

    Returns:
        Twice (rows, kept); 0 for padding.
    """
    prompts = attended[:, :-kept].sum(1).tolist()
    row, place, before, node = torch.tensor([
        (row, place, path[prompt + place - 1], path[prompt + place])
        for row, (path, prompt) in enumerate(zip(tree.paths, prompts, strict=True))
        for place in range(len(path) - prompt)]).T
    logits = head(model)(read_rows(model, tree)[before]) / temperature
    logprobs = logits.float().log_softmax(-1)
    found = logprobs.gather(-1, torch.tensor(tree.tokens)[node][:, None])[:, 0]
    with torch.no_grad():
        entropy = torch.cat([-(some.exp() * some).sum(-1) for some in logprobs.split(CHUNK)])
    return _padded(found, row, place, len(attended), kept), _padded(entropy, row, place, len(attended), kept)


def _padded(values: Tensor, row: Tensor, place: Tensor, rows: int, kept: int) -> Tensor:
    return values.new_zeros(rows, kept).index_put((row, place), values)
