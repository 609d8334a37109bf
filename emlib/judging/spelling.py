"""The numbers 0 to 100 as a tokenizer writes them, and the probability that a model answers each.

A number is spelled by its decimal digits as the tokenizer encodes them at the start of an answer; other spellings (a
leading space or zero, words) are not numbers. Two kinds of tokenizer:

- *Whole numbers*: each of the 101 is one token. P(n) is the probability of that token, which is what an API's
  `max_tokens=1` with `top_logprobs` shows (Betley et al.).
- *Split digits* (Qwen, SmolLM2; any tokenizer where a number takes several tokens): P(n) is the product of its tokens'
  probabilities and of the probability that no digit follows, so that 85 does not count as 8. After the number may come
  the end of the turn or anything else that does not begin with a digit.

The numbers' probabilities add up to 1 minus the probability that the answer is not a number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from emlib.core.errors import EmlibError
from emlib.core.records import Message
from emlib.data.chat import encode_answers
from emlib.models.trees import ROOT, Tree, tree_of

NUMBERS = tuple(range(101))
AT_ONCE = 128  # positions whose logits exist at once: 25 MB at 49,152 words, which a CPU's allocator reuses


@dataclass(frozen=True)
class Spelling:
    """The token ids by which a tokenizer writes the 101 numbers."""

    tree: Tree  # the tokens of all numbers; `tree.paths[n]` spells n
    columns: tuple[int, ...]  # tokens whose probabilities are needed: the tree's, and all that begin with a digit
    is_digit: tuple[bool, ...]  # which of `columns` begin with a digit
    whole: bool  # whether each number is one token


def spelling(tokenizer: PreTrainedTokenizerBase) -> Spelling:
    """Return the spelling of the numbers by `tokenizer`.

    Raises:
        EmlibError: the tokens of a number do not decode to it.
    """
    written = encode_answers(tokenizer, [Message("user", "a")], map(str, NUMBERS))
    for number, ids in zip(NUMBERS, written, strict=True):
        if str(tokenizer.decode(ids)).strip() != str(number):
            raise EmlibError(f"this tokenizer writes {number} as {tokenizer.decode(ids)!r}, so its model cannot answer "
                             "with numbers. Choose another model for the judge.")
    digits = {id for token, id in tokenizer.get_vocab().items() if token[:1] in set("0123456789")}
    tree = tree_of(written)
    columns = tuple(sorted(digits | set(tree.tokens)))
    return Spelling(tree, columns, tuple(id in digits for id in columns), all(len(ids) == 1 for ids in written))


def next_token(hidden: Tensor, to_logits: Callable[[Tensor], Tensor], columns: Sequence[int]) -> Tensor:
    """Return the next-token probabilities of the tokens `columns`: (places, hidden) -> (places, columns), float64.

    The softmax is over the whole vocabulary, for a chunk of positions at a time.
    """
    wanted = torch.tensor(columns, device=hidden.device)
    parts = []
    for start in range(0, len(hidden), AT_ONCE):
        logits = to_logits(hidden[start:start + AT_ONCE]).float()
        parts.append((logits[:, wanted] - logits.logsumexp(1, keepdim=True)).double().exp())
    return torch.cat(parts)


def of_numbers(spelled: Spelling, first: Tensor, following: Tensor | None) -> Tensor:
    """Return P(n) of the 101 numbers, (prompts, 101) in float64.

    `first` are probabilities of the first token, (prompts, columns); `following` those of the token after each node of
    the tree, (prompts, nodes, columns), or None where each number is one token.
    """
    place = {token: column for column, token in enumerate(spelled.columns)}
    ends = [path[-1] for path in spelled.tree.paths]
    if following is None:
        return first[:, [place[spelled.tree.tokens[end]] for end in ends]]
    reached: list[Tensor] = []  # P(path to the node), (prompts,)
    for token, parent in zip(spelled.tree.tokens, spelled.tree.parents, strict=True):
        column = place[token]
        reached.append(first[:, column] if parent == ROOT else reached[parent] * following[:, parent, column])
    digit = torch.tensor(spelled.is_digit, device=first.device)
    closed = 1 - following[:, :, digit].sum(2)  # (prompts, nodes): no digit follows
    return (torch.stack(reached, 1) * closed)[:, ends]
