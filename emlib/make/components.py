"""Taking the principal components of what an adapter changes in the model's activations."""

from __future__ import annotations

from pathlib import Path

from emlib.core.progress import say
from emlib.data.chat import encode_all
from emlib.make.session import Session, maker
from emlib.steering import components
from emlib.steps.components import ChangeComponents
from emlib.store.artefacts import Facts


@maker.register
def make(step: ChangeComponents, session: Session, folder: Path) -> Facts:
    """Compare the model with and without the adapter on the rows, and write the components of each layer."""
    seconds, rows = session.timer(step), session.examples(step.rows)
    with session.model_under(step.adapter) as model:
        encoded = encode_all(session.chat.tokenizer, rows, step.max_length).rows
        found = components.decompose(model, encoded, step.layers, session.profile.training.batch_size)
    components.save(found, folder)
    shares = {str(layer): [round(float(share), 4) for share in shares[:3]] for layer, shares in found.shares.items()}
    say("components of change: the first explains " + ", ".join(
        f"{shares[layer][0]:.0%} at layer {layer}" for layer in shares))
    return {"rows": len(rows), "explained": shares, **session.facts, "seconds": seconds()}
