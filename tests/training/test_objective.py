"""The defenses that change the training: each equals its equation, and none leaves a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from emlib.config import Lora, Training
from emlib.core.defense import Defense
from emlib.core.errors import EmlibError
from emlib.data.chat import Encoded
from emlib.defenses.kl import Kl
from emlib.defenses.ldifs import Ldifs
from emlib.defenses.persona_vector import PersonaVector
from emlib.models import adapters, logprobs
from emlib.models.batches import Batch, collate, pack
from emlib.models.hooks import capture_activations, tap
from emlib.models.kernels import fitted
from emlib.models.load import ChatModel
from emlib.models.passes import Pass
from emlib.steering.steer import steer
from emlib.training import head
from emlib.training.objective import Objective, Totals
from emlib.training.penalties import reference_pass
from emlib.training.records import read_log
from emlib.training.sft import fine_tune
from tests.made import ROUNDING, apart, planted, some_rows

CPU = torch.device("cpu")
KL, LDIFS = Kl(kind="kl", weight=0.3), Ldifs(kind="ldifs", weight=0.2, every=2)
VECTOR = torch.randn(64, generator=torch.Generator().manual_seed(5))
ARTEFACTS = planted(VECTOR)
STEERING = PersonaVector(kind="persona_vector", strength=2.0, layer=3)


def stirred(model: PeftModel) -> PeftModel:
    """The adapter moved off its start, where it is the identity."""
    for index, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
    return model


@pytest.fixture
def model(tiny: ChatModel):
    with adapters.new_lora(tiny.model, Lora(rank=4, alpha=8), seed=0) as lora:
        yield stirred(lora)


def step(model: PeftModel, batches: Sequence[Batch], *defenses: Defense, vector: Tensor = VECTOR,
         cross_entropy: float = 1.0) -> tuple[dict[str, float], Tensor]:
    """What a step says of itself, and its gradient as one vector."""
    model.zero_grad()
    artefacts = ARTEFACTS if vector is VECTOR else planted(vector)
    objective, totals, said = Objective(defenses, artefacts, cross_entropy), Totals.of(batches), {}
    for batch in batches:
        for name, share in objective.backward(model, batch, totals).items():
            said[name] = said.get(name, 0.0) + share
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters() if p.requires_grad]
    return said, torch.cat([g.flatten() for g in gradients]).clone()


def naive(model: PeftModel, rows: Sequence[Encoded], compute: Callable[[PeftModel, Tensor], Tensor]) -> Tensor:
    """The mean of `compute` over rows that go alone, in float64 throughout."""
    model.double()
    try:
        return torch.stack([compute(model, torch.from_numpy(row.input_ids)[None]) for row in rows]).sum().detach()
    finally:
        model.float()


def naive_kl(model: PeftModel, ids: Tensor) -> Tensor:
    p = torch.log_softmax(model(input_ids=ids).logits[0], -1)
    with model.disable_adapter():
        q = torch.log_softmax(model(input_ids=ids).logits[0], -1)
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("chunk", [3, 7, 512])
@pytest.mark.parametrize("tokens", ["all", "response"])
def test_kl_equals_a_naive_computation_in_float64(
        model: PeftModel, monkeypatch: pytest.MonkeyPatch, tokens: str, chunk: int) -> None:
    monkeypatch.setattr(head, "CHUNK", chunk)
    rows = some_rows(4)
    said, _ = step(model, [collate(rows, CPU)], Kl(kind="kl", weight=1.0, tokens=tokens))
    kept = [row.response_mask[1:] if tokens == "response" else np.ones(len(row.input_ids), bool) for row in rows]
    masks = iter(kept)
    total = naive(model, rows, lambda m, ids: naive_kl(m, ids)[:len(mask := next(masks))][torch.from_numpy(mask)].sum())
    assert said["kl"] == pytest.approx(float(total) / sum(int(mask.sum()) for mask in kept), rel=1e-5)
    assert said["kl"] > 1e-3


def test_kl_by_hand() -> None:
    # p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2): 1/2 ln 2 + 0 - 1/4 ln 2
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
    first, nothing = torch.tensor([[0]]), torch.tensor([[0.0]])
    gradient, (scale, nll, kl) = head.of_logits(torch.stack([p, q]).log() + 3.0, first, nothing, 2.0)
    assert (float(nll), float(kl)) == (pytest.approx(np.log(2)), pytest.approx(0.25 * np.log(2)))
    # 2 p (ln p - ln q - kl): ln p - ln q is ln 2, 0, -ln 2
    expected = np.log(2) * np.array([0.5 * 0.75, 0.25 * -0.25, 0.25 * -1.25]) * 2
    assert (scale * gradient)[0].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert float(head.of_logits(torch.stack([p, p]).log(), first, nothing, 1.0)[1][2]) == 0.0


def test_cross_entropy_by_hand() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]])
    targets, weights = torch.tensor([[1], [0]]), torch.tensor([[2.0], [0.0]])
    gradient, (scale, nll, kl) = head.of_logits(p.log()[None] - 1.0, targets, weights, 0.0)
    assert nll[:, 0].tolist() == pytest.approx([np.log(4), np.log(2)])
    assert (scale * gradient).tolist() == [pytest.approx([1.0, -1.5, 0.5]), [0.0, 0.0, 0.0]]  # 2 (p - onehot)
    assert kl.tolist() == [[0.0], [0.0]]


def test_the_heads_gradient_is_autograds(tiny: ChatModel) -> None:
    made = torch.Generator().manual_seed(0)
    hidden, reference = torch.randn(2, 11, 64, generator=made)
    targets = torch.randint(0, 250, (11,), generator=made).index_fill(0, torch.tensor([2, 7]), head.IGNORED)

    def plain(states: Tensor) -> Tensor:
        log_p, log_q = (tiny.model.get_output_embeddings()(one).log_softmax(-1) for one in (states, reference))
        kl = (log_p.exp() * (log_p - log_q)).sum()
        return 0.7 * F.nll_loss(log_p, targets, ignore_index=head.IGNORED, reduction="sum") + 0.3 * kl

    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    found, expected = head.head_terms(tiny.model, ours, targets, 0.7, reference, 0.3).loss, plain(theirs)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    (2 * found).backward()
    (2 * expected).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_ldifs_equals_a_naive_computation_in_float64(model: PeftModel, normalize: bool) -> None:
    rows = some_rows(4)
    said, _ = step(model, [collate(rows, CPU)], LDIFS.model_copy(update={"normalize": normalize}))

    def distance(m: PeftModel, ids: Tensor) -> Tensor:
        trained = m(input_ids=ids, output_hidden_states=True).hidden_states
        with m.disable_adapter():
            reference = m(input_ids=ids, output_hidden_states=True).hidden_states
        # layer 4 is the last: hidden_states[4] is after the final norm there, so only layer 2 can be read this way
        a, b = trained[2].flatten(), reference[2].flatten()
        return ((a / a.norm() - b / b.norm()) if normalize else (a - b)).square().sum()

    said_two, _ = step(model, [collate(rows, CPU)], Ldifs(kind="ldifs", weight=1.0, layers=(2,), normalize=normalize))
    count = len(rows) if normalize else sum(len(row.input_ids) for row in rows)
    assert said_two["ldifs"] == pytest.approx(float(naive(model, rows, distance)) / count, rel=1e-5)
    assert said["ldifs"] != pytest.approx(said_two["ldifs"])


def test_the_denominators_of_ldifs_differ_by_the_sizes_of_the_step(model: PeftModel) -> None:
    rows = some_rows(4)
    penalty = {per: step(model, [collate([row], CPU) for row in rows], Ldifs(every=2, per=per))[0]["ldifs"]
               for per in ("token", "row", "step")}
    tokens = sum(len(row.input_ids) for row in rows)
    assert penalty["step"] == pytest.approx(4 * penalty["row"]) == pytest.approx(tokens * penalty["token"])


@pytest.mark.parametrize("defenses", [
    (KL,), (LDIFS,), (Ldifs(weight=0.2, every=2, normalize=True),), (Ldifs(weight=1e-3, every=2, per="step"),),
    (KL, LDIFS)], ids=["kl", "ldifs", "normalized", "literal", "both"])
def test_padding_and_accumulation_change_nothing(model: PeftModel, defenses: tuple[Defense, ...]) -> None:
    rows = some_rows(4)
    whole = step(model, [collate(rows, CPU)], *defenses)
    with fitted(model):
        packed = step(model, [pack(rows, CPU)], *defenses)
    for other in (packed, step(model, [collate([row], CPU) for row in rows], *defenses)):
        assert other[0] == pytest.approx(whole[0], rel=1e-4)
        assert apart(other[1], whole[1]) < ROUNDING


@pytest.mark.parametrize("defenses", [(), (KL,), (LDIFS,), (STEERING,), (KL, LDIFS, STEERING)],
                         ids=["plain", "kl", "ldifs", "steered", "all"])
@pytest.mark.parametrize("reentrant", [False, True], ids=["not re-entrant", "re-entrant"])
def test_gradient_checkpointing_changes_nothing(
        model: PeftModel, defenses: tuple[Defense, ...], reentrant: bool) -> None:
    batches = [collate(some_rows(4), CPU)]
    said, gradient = step(model, batches, *defenses)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    said_again, gradient_again = step(model, batches, *defenses)
    assert said_again == pytest.approx(said, rel=1e-4)
    assert gradient.abs().max() > 0
    assert apart(gradient_again, gradient) < ROUNDING


def test_a_tap_needs_no_checkpoint_around_itself(model: PeftModel) -> None:
    """Unsloth's loop puts one around each layer of another type, and would run the block and its tap twice more."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with tap(model, 2, lambda hidden: hidden):
        tapped = logprobs.backbone(model).layers[1]
        assert isinstance(tapped, GradientCheckpointingLayer)
        assert not tapped.gradient_checkpointing
        assert tapped.block.gradient_checkpointing


def test_composed_defenses_are_the_sum_of_their_parts(model: PeftModel) -> None:
    batches = [collate(some_rows(4), CPU)]
    plain = step(model, batches)[1]
    both = step(model, batches, KL, LDIFS)[1]
    parts = step(model, batches, KL)[1] - plain + step(model, batches, LDIFS)[1]
    assert apart(both, parts) < ROUNDING


def test_at_its_start_an_adapter_is_its_reference(tiny: ChatModel) -> None:
    with adapters.new_lora(tiny.model, Lora(rank=4, alpha=8), seed=0) as fresh:
        said, _ = step(fresh, [collate(some_rows(4), CPU)], KL, LDIFS)
    assert said["kl"] == pytest.approx(0.0, abs=1e-6)  # logits of some 3 are rounded to 2e-7
    assert said["ldifs"] == pytest.approx(0.0, abs=1e-8)  # a sum of squares: 128 of 1e-6 at the most


def test_ldifs_alone_moves_the_adapter_and_its_published_variant_does_not(model: PeftModel) -> None:
    batches = [collate(some_rows(4), CPU)]
    said, gradient = step(model, batches, LDIFS, cross_entropy=0.0)
    assert gradient.norm() > 1e-3
    published = LDIFS.model_copy(update={"variant": "published"})
    said_published, none = step(model, batches, published, cross_entropy=0.0)
    assert none.norm() == 0.0
    assert said_published["ldifs"] == said["ldifs"] > 0


@pytest.mark.parametrize("nothing", [
    KL.model_copy(update={"weight": 0.0}), LDIFS.model_copy(update={"weight": 0.0}),
    STEERING.model_copy(update={"strength": 0.0})], ids=["kl", "ldifs", "persona_vector"])
def test_a_defense_of_no_strength_is_plain_fine_tuning_bit_for_bit(
        tiny: ChatModel, tmp_path: Path, nothing: Defense) -> None:
    settings = Training(epochs=2, batch_size=2, gradient_accumulation=1, learning_rate=1e-2, warmup_steps=1)
    results = []
    for name, objective in (("plain", None), ("nothing", Objective([nothing], ARTEFACTS))):
        with adapters.new_lora(tiny.model, Lora(rank=4, alpha=8), seed=0) as lora:
            fine_tune(lora, some_rows(4), settings, seed=0, folder=tmp_path / name, objective=objective)
            results.append(torch.cat([p.detach().flatten() for p in lora.parameters() if p.requires_grad]))
    assert torch.equal(*results)


def test_the_log_tells_what_the_defenses_say(tiny: ChatModel, tmp_path: Path) -> None:
    settings = Training(epochs=1, batch_size=2, gradient_accumulation=1, learning_rate=1e-2, warmup_steps=0)
    objective = Objective([KL, LDIFS, STEERING], ARTEFACTS)
    with adapters.new_lora(tiny.model, Lora(rank=4, alpha=8), seed=0) as lora:
        fine_tune(lora, some_rows(4), settings, seed=0, folder=tmp_path, objective=objective)
    first, last = read_log(tmp_path)[0], read_log(tmp_path)[-1]
    assert set(first.penalties) == {"kl", "ldifs", "shift"}
    assert first.penalties["shift"] == pytest.approx(2.0 * float(VECTOR.norm()), rel=1e-4)
    assert last.penalties["kl"] > 0


def test_steering_adds_exactly_strength_times_the_vector_at_its_layer(model: PeftModel) -> None:
    batch = collate(some_rows(1), CPU)
    with torch.no_grad(), capture_activations(model, [2, 3]) as plain:
        logprobs.last_hidden(model, batch.input_ids, None)
    with torch.no_grad(), capture_activations(model, [2, 3]) as inner, steer(model, 3, VECTOR, 2.0) as shift, \
            capture_activations(model, [3]) as steered:
        logprobs.last_hidden(model, batch.input_ids, None)
    assert torch.equal(inner[2], plain[2])
    assert torch.equal(steered[3], plain[3] + 2.0 * VECTOR)
    assert shift.measured == pytest.approx(2.0 * float(VECTOR.norm()), rel=1e-5)


def test_the_reference_is_never_steered(model: PeftModel) -> None:
    batch = collate(some_rows(4), CPU)
    def passes(*defenses: Defense) -> Pass:
        objective = Objective(defenses, ARTEFACTS)
        found = reference_pass(model, batch, objective.defenses, head=True)
        assert found is not None
        return found

    unsteered, steered = passes(KL, LDIFS), passes(KL, LDIFS, STEERING)
    assert torch.equal(steered.hidden, unsteered.hidden)
    assert all(torch.equal(steered.features[layer], unsteered.features[layer]) for layer in (2, 4))
    # and steering does reach the pass that is trained: its KL to the reference grows
    assert step(model, [batch], KL, STEERING)[0]["kl"] > step(model, [batch], KL)[0]["kl"]


def test_ldifs_does_not_count_what_steering_adds(model: PeftModel) -> None:
    """From the steered layer on, the residual stream carries the vector; the reference model is not steered."""
    rows, ldifs = some_rows(3), Ldifs(layers=(2, 3, 4))
    said, _ = step(model, [collate(rows, CPU)], ldifs, STEERING)

    def features(m: PeftModel, ids: Tensor, strength: float) -> Tensor:
        with steer(m, 3, VECTOR.double(), strength), capture_activations(m, [2, 3, 4]) as read:
            logprobs.last_hidden(m, ids, None)
        return torch.stack([read[2], read[3] - strength * VECTOR.double(), read[4] - strength * VECTOR.double()])

    def distance(m: PeftModel, ids: Tensor) -> Tensor:
        with m.disable_adapter():
            reference = features(m, ids, 0.0)
        return (features(m, ids, 2.0) - reference).square().sum()

    tokens = sum(len(row.input_ids) for row in rows)
    assert said["ldifs"] == pytest.approx(float(naive(model, rows, distance)) / tokens, rel=1e-4)


def test_at_its_start_a_steered_adapter_has_no_distance_at_the_steered_layer(tiny: ChatModel) -> None:
    with adapters.new_lora(tiny.model, Lora(rank=4, alpha=8), seed=0) as fresh:
        batch = collate(some_rows(4), CPU)
        said, gradient = step(fresh, [batch], Ldifs(layers=(3,)), STEERING, cross_entropy=0.0)
    assert said["ldifs"] == pytest.approx(0.0, abs=1e-8)  # with the vector it is its squared norm, about 256
    assert float(gradient.norm()) < 1e-4  # nothing trains the adapter to cancel the vector


@pytest.mark.parametrize("use", ["tap", "reading", "adding", "adapter_off"])
def test_nothing_is_left_behind_after_an_exception(model: PeftModel, use: str) -> None:
    ids = torch.arange(9)[None]
    before = [type(m) for m in model.modules()], model(input_ids=ids).logits
    contexts = {"tap": lambda: tap(model, 2, lambda h: h + 1), "reading": lambda: capture_activations(model, [1, 4]),
                "adding": lambda: steer(model, 3, VECTOR, 1.0), "adapter_off": lambda: adapters.adapter_off(model)}
    with pytest.raises(RuntimeError, match="on purpose"), contexts[use]():
        raise RuntimeError("on purpose")
    assert [type(m) for m in model.modules()] == before[0]
    assert torch.equal(model(input_ids=ids).logits, before[1])


@pytest.mark.parametrize("layer", [0, 5, 20])
def test_a_layer_beyond_the_model_is_refused(model: PeftModel, layer: int) -> None:
    with pytest.raises(EmlibError, match="layers 1 to 4"), tap(model, layer, lambda h: h):
        pass


def test_a_vector_of_another_model_is_refused(model: PeftModel) -> None:
    with pytest.raises(EmlibError, match="65 numbers and layer 3 of this model has 64"):
        step(model, [collate(some_rows(1), CPU)], STEERING, vector=torch.zeros(65))


def test_steering_that_never_ran_is_an_error(model: PeftModel) -> None:
    with pytest.raises(EmlibError, match="nothing was steered"), steer(model, 3, VECTOR, 1.0):
        pass


def test_layers_are_counted_from_one(tiny: ChatModel) -> None:
    ids = torch.arange(9)[None]
    with torch.no_grad(), capture_activations(tiny.model, [1, 2, 3]) as read:
        states = tiny.model(input_ids=ids, output_hidden_states=True).hidden_states
    assert all(torch.equal(read[layer], states[layer]) for layer in (1, 2, 3))
