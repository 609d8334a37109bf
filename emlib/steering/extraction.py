"""Persona vectors: e_l = mean h+_l - mean h-_l over response tokens (section 3.1; Chen et al. 2025).

The model answers the same questions under contrastive system prompts. A pair of answers is kept where the positive one
shows the trait, the negative one does not, and both are coherent. As in Chen et al.'s code (`generate_vec.py`), the
response tokens are those of the answer's text, without the token that ends the turn, and without the empty think block
that the template of a reasoning model writes before it. One difference to the paper: the last layer is the output of
the last block before the final norm, because that is where a vector can be added; transformers' `hidden_states[-1]` is
after the norm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from emlib.config import Extraction, Trait
from emlib.core.errors import EmlibError
from emlib.core.progress import say
from emlib.core.records import Answer, Example, Question, Verdict
from emlib.data.chat import WHOLE, Encoded, counted, encode_or_drop
from emlib.data.left_out import Dropped
from emlib.models import tensors
from emlib.models.hooks import layers
from emlib.models.load import ChatModel
from emlib.models.logprobs import causal_lm
from emlib.steering.activations import response_means

FILE = "vectors.safetensors"
SIDES = ("positive", "negative")


@dataclass(frozen=True)
class PersonaVectors:
    """One vector per layer, not normalised: (layers + 1, hidden) in float32; index 0 belongs to the embeddings.

    `projections` holds, for the positive and the negative side, the scalar projection of each kept answer's mean
    activation onto the vector's direction: (kept, layers + 1). `left_out` is the number of pairs that the chat
    template refuses or rewrites, by reason; no file has it.
    """

    vectors: Tensor
    kept: int
    asked: int
    projections: dict[str, Tensor] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)

    def at(self, layer: int) -> Tensor:
        """Return the vector of the output of block `layer`, counted from 1.

        Raises:
            EmlibError: the model has no such layer.
        """
        if not 1 <= layer < len(self.vectors):
            raise EmlibError(f"layer {layer}: this model has layers 1 to {len(self.vectors) - 1}. Choose one of them.")
        return self.vectors[layer]


def trait_questions(trait: Trait, pairs: int | None = None) -> dict[str, list[Question]]:
    """Return the trait's questions under the system prompts of each side; entry i of both sides is one pair."""
    chosen = trait.system_prompts[:pairs]
    return {side: [Question(f"{number}_{index}_{side}", question, getattr(prompts, side))
                   for number, prompts in enumerate(chosen) for index, question in enumerate(trait.questions)]
            for side in SIDES}


def kept_pairs(positive: Sequence[Verdict], negative: Sequence[Verdict], keep: str = "judged") -> list[int]:
    """Return the indices of the pairs to keep: trait >= 50 against < 50, both coherent; trait = 100 - alignment."""
    if keep == "all":
        return list(range(len(positive)))
    return [place for place, (p, n) in enumerate(zip(positive, negative, strict=True))
            if p.alignment is not None and n.alignment is not None and p.scored and n.scored
            and 100 - p.alignment >= 50 > 100 - n.alignment and not p.incoherent and not n.incoherent]


def examples(questions: Sequence[Question], answers: Sequence[Answer]) -> list[Example]:
    """Return the conversations, each a question's context and its answer, without what it thinks before."""
    by_id = {question.id: question for question in questions}
    return [Example(by_id[answer.question].context, answer.without_thinking().text) for answer in answers]


@torch.inference_mode()
def activations(chat: ChatModel, rows: Sequence[Encoded]) -> Tensor:
    """Compute each row's mean activation over its response tokens: (rows, layers + 1, hidden) in float32."""
    if not rows:
        raise EmlibError("there are no answers to compute activations from: expected at least one.")
    embed = causal_lm(chat.model).get_input_embeddings()
    words = [embed(torch.from_numpy(row.input_ids[row.response_mask]).to(chat.device)).float().mean(0).cpu()
             for row in rows]
    means = response_means(chat.model, rows, range(1, layers(chat.model) + 1))
    return torch.cat([torch.stack(words)[:, None], means], dim=1)


def projection(states: Tensor, vectors: Tensor) -> Tensor:
    """Compute the scalar projection onto each layer's vector: (rows, layers + 1, hidden) -> (rows, layers + 1)."""
    directions = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
    return (states * directions).sum(-1)


def unit(vector: Tensor, layer: int) -> Tensor:
    """Return a layer's persona vector, scaled to length 1.

    Raises:
        EmlibError: it is zero.
    """
    length = float(vector.norm())
    if not length > 0:
        raise EmlibError(f"the persona vector of layer {layer} is zero: the two sides' answers have the same mean "
                         "activation. Choose another layer, or extract it from more answers.")
    return vector / length


def extract(chat: ChatModel, questions: dict[str, list[Question]], answers: dict[str, list[Answer]],
            verdicts: dict[str, list[Verdict]], settings: Extraction) -> PersonaVectors:
    """Return the vectors of the pairs that are kept. Entry i of both sides' answers and verdicts is one pair.

    Raises:
        EmlibError: fewer than `min_pairs` are kept; the message says how many of how many, and what to change.
    """
    kept = kept_pairs(verdicts["positive"], verdicts["negative"], settings.keep)
    kept = [place for place in kept if all(answers[side][place].without_thinking().text.strip() for side in SIDES)]
    asked = len(answers["positive"])
    settings.refuse_few(len(kept), asked)
    sides = [examples(questions[side], [answers[side][place] for place in kept]) for side in SIDES]
    pairs, left_out = _encoded(chat.tokenizer, list(zip(*sides, strict=True)))
    if left_out:
        what = (f"{left_out.total()} of {len(kept)} pairs of answers {'is' if left_out.total() == 1 else 'are'} left "
                f"out ({'; '.join(left_out)})")
        if len(pairs) < settings.min_pairs:
            raise EmlibError(f"{what}, and {settings.min_pairs} are wanted. Ask for more samples, choose another chat "
                             "template, or lower extraction.min_pairs.")
        say(what)
    states = {side: activations(chat, [counted(row, end_of_turn=settings.end_of_turn) for row in rows])
              for side, rows in zip(SIDES, zip(*pairs, strict=True), strict=True)}
    vectors = states["positive"].mean(0) - states["negative"].mean(0)
    return PersonaVectors(vectors, len(pairs), asked, {side: projection(states[side], vectors) for side in SIDES},
                          left_out)


def _encoded(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[Example, ...]],
             ) -> tuple[list[list[Encoded]], Counter[str]]:
    """Encode both answers of each pair; leave out pairs of which one cannot be, and count them by its reason."""
    encoded, left_out = list[list[Encoded]](), Counter[str]()
    for pair in pairs:
        found = [encode_or_drop(tokenizer, example, WHOLE) for example in pair]
        rows = [row for row in found if isinstance(row, Encoded)]
        if len(rows) == len(pair):
            encoded.append(rows)
        else:
            left_out[next(row.counted_as for row in found if isinstance(row, Dropped))] += 1
    return encoded, left_out


def save(found: PersonaVectors, folder: Path) -> None:
    """Write the vectors as safetensors, with the number of pairs they are computed from."""
    tensors.save(folder / FILE, {"vectors": found.vectors} | {
        f"projections_{side}": rows for side, rows in found.projections.items()},
        {"kept": found.kept, "asked": found.asked})


def load(folder: Path) -> PersonaVectors:
    """Load the vectors that `save` wrote; cached while the file is unchanged, because every pass loads them."""
    return _read(folder / FILE, (folder / FILE).stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(path: Path, _: int) -> PersonaVectors:
    stored, metadata = tensors.load(path)
    return PersonaVectors(stored["vectors"], int(metadata["kept"]), int(metadata["asked"]),
                          {side: stored[f"projections_{side}"] for side in SIDES if f"projections_{side}" in stored})
