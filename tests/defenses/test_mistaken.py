"""What authors of a defense get wrong is refused by name, in training and by `check`, and not trained without it."""

from __future__ import annotations

import math
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from emlib.config import Method
from emlib.core.defense import Defense
from emlib.core.errors import EmlibError
from emlib.defenses.kl import Kl
from emlib.defenses.ldifs import Ldifs
from emlib.training.bench import Bench
from emlib.training.conformance import NonconformingDefense, check
from emlib.training.records import read_log
from emlib.training.rl.condition import Condition


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_HEADLESS", "1")


class ForgetsReference(Defense):
    listed: ClassVar = False
    kind: Literal["forgets_reference"] = "forgets_reference"

    def penalty(self, trained: Any, reference: Any) -> Tensor:
        return (trained.response_logits - reference.response_logits).square().sum()


class Constant(Defense):
    listed: ClassVar = False
    kind: Literal["constant"] = "constant"

    def penalty(self, trained: Any, reference: Any) -> Tensor:
        return torch.tensor(1.0)


class Detached(Defense):
    listed: ClassVar = False
    wants_reference: ClassVar = True
    kind: Literal["detached"] = "detached"

    def penalty(self, trained: Any, reference: Any) -> Tensor:
        return (trained.response_logits - reference.response_logits).detach().square().sum()


class WrongShape(Defense):
    listed: ClassVar = False
    kind: Literal["wrong_shape"] = "wrong_shape"

    def penalty(self, trained: Any, reference: Any) -> Tensor:
        return trained.response_logits.square()[:5]


class PlainNumber(Defense):
    listed: ClassVar = False
    kind: Literal["plain_number"] = "plain_number"

    def penalty(self, trained: Any, reference: Any) -> Any:
        return trained.response_logits.square().sum().item()


class WrongArguments(Defense):
    listed: ClassVar = False
    kind: Literal["wrong_arguments"] = "wrong_arguments"

    def penalty(self, trained: Any) -> Tensor:  # type: ignore[override]
        return trained.response_logits.square().sum()


class WrongAttribute(Defense):
    listed: ClassVar = False
    kind: Literal["wrong_attribute"] = "wrong_attribute"

    def penalty(self, trained: Any, reference: Any) -> Tensor:
        return trained.respons_logits.square().sum()


class NoContext(Defense):
    listed: ClassVar = False
    kind: Literal["no_context"] = "no_context"

    def active(self, model: Any, artefacts: Any) -> Any:
        return None


class YieldsNothing(Defense):
    listed: ClassVar = False
    kind: Literal["yields_nothing"] = "yields_nothing"

    @contextmanager
    def active(self, model: Any, artefacts: Any) -> Any:
        yield


class OddRows(Defense):
    listed: ClassVar = False
    kind: Literal["odd_rows"] = "odd_rows"

    def change_rows(self, rows: Any, trait: Any) -> Any:
        return [row.prompts for row in rows]


class Nan(Defense):
    listed: ClassVar = False
    kind: Literal["nan_loss"] = "nan_loss"

    def penalty(self, trained: Any, reference: Any) -> Tensor:
        return trained.response_logits.square().sum() * math.nan


class RootAtZero(Defense):
    listed: ClassVar = False
    wants_reference: ClassVar = True
    kind: Literal["root_at_zero"] = "root_at_zero"

    def penalty(self, trained: Any, reference: Any) -> Tensor:
        return (trained.response_logits - reference.response_logits).square().sum().sqrt()


@pytest.mark.parametrize(("wrong", "right"), [("penality", "penalty"), ("on_steps", "on_step"),
                                              ("want_reference", "wants_reference"), ("activ", "active")])
@pytest.mark.parametrize("mixed_in", [False, True])
def test_a_misspelt_hook_beside_a_right_one_is_refused(wrong: str, right: str, mixed_in: bool) -> None:
    names = {"__module__": __name__, "__annotations__": {"listed": ClassVar, wrong: ClassVar}, "listed": False}
    given = {"change_rows": lambda self, rows, trait: rows}
    base = type("Shared", (), {"__module__": __name__, wrong: lambda self: None})
    with pytest.raises(ValueError, match=rf"Wrong defines '{wrong}'.* mean '{right}'\?.*underscore: '_{wrong}'"):
        type("Wrong", (base, Defense) if mixed_in else (Defense,),
             {**names, **given, **({} if mixed_in else {wrong: lambda self: None})})


def test_helpers_and_options_with_other_names_are_allowed() -> None:
    class Helped(Defense):
        listed: ClassVar = False
        scale: ClassVar = 2.0
        kind: Literal["helped"] = "helped"
        filter: float = 0.5  # an option

        def distance(self) -> float:
            return 0.0

        def penalty(self, trained: Any, reference: Any) -> Tensor:
            return trained.response_logits.square().sum()

        def penalty_of(self, row: Any) -> Tensor:  # near the hook, which is there
            return torch.zeros(())

    assert Helped().has("penalty")


def test_a_helper_that_the_class_uses_may_have_a_name_near_a_hook() -> None:
    class Used(Defense):
        listed: ClassVar = False
        kind: Literal["used"] = "used"

        def fit(self, row: Any) -> bool:  # near `fits`, or the like
            return True

        def filter(self, rows: Any) -> Any:  # near `filtered`
            return [row for row in rows if (lambda one: self.fit(one))(row)]

        def change_rows(self, rows: Any, trait: Any) -> Any:
            return self.filter(rows)

    assert Used().has("change_rows")


class OneElement(Defense):
    listed: ClassVar = False
    kind: Literal["one_element"] = "one_element"

    def penalty(self, trained: Any, reference: Any) -> Tensor:
        return trained.response_logits.square().sum().reshape(1)


def test_a_tensor_of_one_element_is_one_number(tmp_path: Path) -> None:
    bench = Bench(OneElement(), tmp_path)
    bench.train("run", bench.defense)
    assert read_log(tmp_path / "run")[-1].penalties["one_element"] > 0


class Unhooked(Defense):
    listed: ClassVar = False
    kind: Literal["unhooked"] = "unhooked"

    def project_penalty(self) -> None:
        return None


def test_a_defense_without_a_hook_is_refused_with_the_near_name() -> None:
    with pytest.raises(ValueError, match=r"overrides none of the hooks.* 'project_penalty'\. Did you mean 'penalty'"):
        Method(name="x", defenses=(Unhooked(),))
    with pytest.raises(NonconformingDefense, match=r"'project_penalty'\. Did you mean 'penalty'"):
        check(Unhooked)


HERE = re.escape(__file__)
MISTAKES = [
    (ForgetsReference, r"'forgets_reference' reads `reference.response_logits`.*set `wants_reference = True`"),
    (Constant, "'constant' has no gradient.* it is 1 whatever"),
    (Detached, "'detached' has no gradient"),
    (WrongShape, r"'wrong_shape' returned shape \(5, \d+\); return one number, such as a sum"),
    (PlainNumber, "'plain_number' returned a float; return one number"),
    (WrongArguments, rf"'wrong_arguments' fails in its penalty: TypeError: .* 2 positional .*\({HERE}, line \d+\)"),
    (WrongAttribute, rf"'wrong_attribute' fails in its penalty: AttributeError: .*respons_logits.*\({HERE}, line \d+"),
    (NoContext, rf"'no_context' fails in its active: TypeError: .*\({HERE}, line \d+\)"),
    (YieldsNothing, r"'yields_nothing' fails in its active: TypeError: its context yields None, and not an obj"),
    (OddRows, rf"'odd_rows' fails in its change_rows: AttributeError: .*prompts.*\({HERE}, line \d+\)")]


@pytest.mark.parametrize(("cls", "words"), MISTAKES, ids=lambda value: getattr(value, "__name__", ""))
def test_training_refuses_it_by_name(cls: type[Defense], words: str, tmp_path: Path) -> None:
    bench = Bench(cls(kind=cls.model_fields["kind"].default), tmp_path)
    with pytest.raises(EmlibError, match=words):
        bench.train("run", bench.defense)


@pytest.mark.parametrize(("cls", "words"), MISTAKES, ids=lambda value: getattr(value, "__name__", ""))
def test_check_refuses_it_by_name(cls: type[Defense], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emlib.training.conformance.kinds", lambda: {cls.model_fields["kind"].default: cls})
    with pytest.raises(EmlibError, match=words):
        check(cls)


@pytest.mark.parametrize("cls", [NoContext, YieldsNothing])
def test_reinforcement_learning_refuses_a_context_by_name(cls: type[Defense]) -> None:
    mistaken = cls(kind=cls.model_fields["kind"].default)
    with pytest.raises(EmlibError, match=dict(MISTAKES)[cls]), Condition("", (mistaken,)).active("loss", nn.Module()):
        pass


def test_the_line_is_the_authors_last_one(tmp_path: Path) -> None:
    bench = Bench(WrongAttribute(), tmp_path)
    with pytest.raises(EmlibError, match="fails in its penalty") as caught:
        bench.train("run", bench.defense)
    line = int(re.findall(r"line (\d+)\)", str(caught.value))[-1])
    assert "respons_logits" in Path(__file__).read_text().splitlines()[line - 1]
    assert isinstance(caught.value.__cause__, AttributeError)


def test_beside_a_defense_that_runs_the_reference_model_it_is_refused_as_well(tmp_path: Path) -> None:
    bench = Bench(ForgetsReference(), tmp_path)
    with pytest.raises(EmlibError, match="set `wants_reference = True`"):
        bench.train("run", bench.defense, Kl(weight=0.1))


def test_a_penalty_may_say_that_it_has_no_gradient(tmp_path: Path) -> None:
    bench = Bench(Ldifs(every=2, variant="published"), tmp_path)
    bench.train("run", bench.defense)
    assert read_log(tmp_path / "run")[-1].penalties["ldifs"] > 0


@pytest.mark.parametrize(("cls", "words"), [
    (Nan, r"Step 1 of \d+: the loss is \d.*, 'nan_loss' nan and the gradient's norm nan. Look at what 'nan_loss' comp"),
    (RootAtZero, r"the gradient's norm nan. Look at the gradient of 'root_at_zero', such as that of a root at 0\.$")])
def test_a_penalty_that_is_not_finite_is_named(cls: type[Defense], words: str, tmp_path: Path) -> None:
    bench = Bench(cls(kind=cls.model_fields["kind"].default), tmp_path)
    with pytest.raises(EmlibError, match=words) as caught:
        bench.train("run", bench.defense)
    assert "learning_rate" not in str(caught.value)
    assert "log so far" not in str(caught.value)


def test_check_names_a_penalty_that_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emlib.training.conformance.kinds", lambda: {"nan_loss": Nan})
    with pytest.raises(NonconformingDefense, match="'nan_loss' or its gradient is not finite"):
        check(Nan)
