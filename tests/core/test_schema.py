"""The strict door: one line a mistake, which names file, key, value, what is allowed and the nearest known key."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from emlib.core.errors import ProfileError, nearest
from emlib.core.schema import Strict, check

FILE = "params/zoo.yaml"


class Cat(Strict):
    kind: Literal["cat"]
    whiskers: int = 12


class Dog(Strict):
    kind: Literal["dog"]
    barking: bool = True


class Pond(Strict):
    depth: Annotated[float, Field(gt=0, le=9)] = 1.0
    colour: Literal["green", "blue"] = "blue"


class Zoo(Strict):
    name: str
    visitors: int = 0
    pond: Pond = Pond()
    ponds: tuple[Pond, ...] = ()
    named_ponds: dict[str, Pond] = Field(default_factory=dict)
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] = Dog(kind="dog")
    pets: tuple[Annotated[Cat | Dog, Field(discriminator="kind")], ...] = ()


def mistakes(data: Any) -> list[str]:
    """The lines that `check` says about `data`, each of which names the file."""
    with pytest.raises(ProfileError) as caught:
        check(Zoo, data, FILE)
    lines = str(caught.value).split("\n")
    assert all(line.startswith(f"{FILE}: ") for line in lines)
    return lines


def test_what_fits_comes_back_as_it_was_and_cannot_be_changed() -> None:
    data = {"name": "Oslo", "pond": {"depth": 2}, "ponds": [{"colour": "green"}], "pet": {"kind": "cat", "whiskers": 3}}
    zoo = check(Zoo, data, FILE)
    assert zoo == Zoo(name="Oslo", pond=Pond(depth=2.0), ponds=(Pond(colour="green"),), pet=Cat(kind="cat", whiskers=3))
    with pytest.raises(ValidationError, match="frozen"):
        zoo.name = "Bergen"  # type: ignore[misc]


@pytest.mark.parametrize(("data", "wrong", "right", "known"), [
    ({"nam": "a"}, "nam", "name", {"name", "visitors", "pond", "ponds", "named_ponds", "pet", "pets"}),
    ({"pond": {"colur": "blue"}}, "colur", "colour", {"depth", "colour"}),
    ({"ponds": [{"depth": 1}, {"dept": 2}]}, "dept", "depth", {"depth", "colour"}),
    ({"named_ponds": {"depth": {"colours": "blue"}}}, "colours", "colour", {"depth", "colour"}),
    ({"pet": {"kind": "cat", "wiskers": 1}}, "wiskers", "whiskers", {"kind", "whiskers"}),
    ({"pet": {"kind": "dog", "braking": True}}, "braking", "barking", {"kind", "barking"}),
    ({"pets": [{"kind": "dog"}, {"kind": "cat", "kindd": 1}]}, "kindd", "kind", {"kind", "whiskers"}),
])
def test_an_unknown_key_gets_the_nearest_key_of_its_own_record(
        data: dict[str, Any], wrong: str, right: str, known: set[str]) -> None:
    [line] = mistakes({"name": "Oslo"} | data)
    assert re.search(rf"'(pond|ponds\.1|named_ponds\.depth|pet|pets\.1)\.{wrong}'|'{wrong}'", line)  # as in the file
    assert f"Did you mean '{right}'?" in line
    assert set(line.partition("Known here: ")[2].rstrip(".").split(", ")) == known


def test_a_key_of_another_kind_of_record_is_not_suggested() -> None:
    [line] = mistakes({"name": "Oslo", "pet": {"kind": "dog", "whiskers": 3}})
    assert "whiskers'" in line
    assert "Did you mean" not in line


@pytest.mark.parametrize(("data", "key", "value"), [
    ({"name": 7}, "name", "7"),
    ({"visitors": "7"}, "visitors", '"7"'),
    ({"visitors": 7.0}, "visitors", "7.0"),
    ({"visitors": True}, "visitors", "true"),
    ({"visitors": None}, "visitors", "null"),
    ({"visitors": [7]}, "visitors", "[7]"),
    ({"pond": 7}, "pond", "7"),
    ({"pond": {"depth": "7"}}, "pond.depth", '"7"'),
    ({"ponds": {"depth": 7}}, "ponds", '{"depth": 7}'),
    ({"ponds": [{"depth": 7}, {"depth": "7"}]}, "ponds.1.depth", '"7"'),
])
def test_a_value_of_another_type_is_refused_and_not_converted(data: dict[str, Any], key: str, value: str) -> None:
    [line] = mistakes({"name": "Oslo"} | data)
    assert f"'{key}' is {value}:" in line


@pytest.mark.parametrize(("data", "key", "value", "allowed"), [
    ({"pond": {"depth": 0}}, "pond.depth", "0", "greater than 0"),
    ({"pond": {"depth": -0.5}}, "pond.depth", "-0.5", "greater than 0"),
    ({"pond": {"depth": 9.5}}, "pond.depth", "9.5", "less than or equal to 9"),
    ({"pond": {"depth": float("nan")}}, "pond.depth", "NaN", "finite"),
    ({"ponds": [{"depth": float("inf")}]}, "ponds.0.depth", "Infinity", "finite"),
    ({"pond": {"colour": "bleu"}}, "pond.colour", '"bleu"', "'green' or 'blue'"),
])
def test_an_impossible_value_says_what_is_allowed(data: dict[str, Any], key: str, value: str, allowed: str) -> None:
    [line] = mistakes({"name": "Oslo"} | data)
    assert f"'{key}' is {value}:" in line
    assert allowed in line


class Member(Strict):
    not_in_keys: ClassVar = frozenset({"nickname"})

    name: str
    nickname: str = ""


class Club(Strict):
    first: Member
    others: tuple[Member, ...] = ()
    by_role: dict[str, Member] = Field(default_factory=dict)
    pairs: tuple[tuple[Member, int], ...] = ()
    founded: datetime.date = datetime.date(2026, 1, 2)


def test_what_a_record_leaves_out_of_keys_it_leaves_out_in_lists_and_mappings_too() -> None:
    def club(name: str, nickname: str) -> Any:
        one = Member(name=name, nickname=nickname)
        return Club(first=one, others=(one,), by_role={"head": one}, pairs=((one, 1),)).identity

    ann = {"name": "Ann"}
    assert club("Ann", "A") == club("Ann", "B") == {
        "first": ann, "others": [ann], "by_role": {"head": ann}, "pairs": [[ann, 1]], "founded": "2026-01-02"}


def test_an_impossible_word_gets_the_nearest_word() -> None:
    [line] = mistakes({"name": "Oslo", "pond": {"colour": "bleu"}})
    assert "Did you mean 'blue'?" in line


def test_an_unknown_kind_gets_the_nearest_kind_and_all_that_there_are() -> None:
    [line] = mistakes({"name": "Oslo", "pet": {"kind": "dgo", "barking": True}})
    for words in ("'pet'", "'dgo'", "Did you mean 'dog'?", "cat, dog"):
        assert words in line


@pytest.mark.parametrize("data", [{"name": "Oslo", "pet": {"barking": True}}, {"name": "Oslo", "pet": {"kind": None}}])
def test_a_record_without_its_kind_is_one_line_that_names_it(data: dict[str, Any]) -> None:
    [line] = mistakes(data)
    assert "'pet.kind' is missing" in line or "'pet': unknown kind 'None'" in line
    assert "cat, dog" in line


@pytest.mark.parametrize("item", ["1", None, {"depth": "1"}, {"dept": 1}])
def test_a_list_with_one_wrong_item_is_one_mistake(item: Any) -> None:
    class Lake(Strict):
        ponds: Annotated[tuple[Pond, ...], Field(min_length=1)]

    with pytest.raises(ProfileError) as caught:
        check(Lake, {"ponds": [item]}, FILE)
    assert len(str(caught.value).split("\n")) == 1
    with pytest.raises(ProfileError, match="at least 1"):
        check(Lake, {"ponds": []}, FILE)


def test_a_missing_key_is_named() -> None:
    [line] = mistakes({"visitors": 1})
    assert "'name'" in line
    assert "missing" in line


def test_every_mistake_has_its_own_line_and_all_come_at_once() -> None:
    lines = mistakes({"visitor": 1, "visitors": "2", "pond": {"depth": -1}, "pet": {"kind": "rat"}})
    assert len(lines) == 5
    for words in ("'name' is missing", "Did you mean 'visitors'?", "'visitors' is \"2\"", "'pond.depth' is -1",
                  "unknown kind 'rat'"):
        assert sum(words in line for line in lines) == 1


def test_values_that_do_not_go_together_have_a_line_for_each_mistake() -> None:
    class Fence(Strict):
        low: int
        high: int

        def _mistakes(self) -> Iterator[str]:
            if self.low > self.high:
                yield "'low' is above 'high'. Swap them"
            if self.high < 0:
                yield "nothing is that low"

    class Meadow(Strict):
        fence: Fence

    with pytest.raises(ProfileError) as caught:
        check(Meadow, {"fence": {"low": 1, "high": -1}}, FILE)
    start = f"{FILE}: 'fence' is {{\"low\": 1, \"high\": -1}}: "
    assert str(caught.value).split("\n") == [f"{start}'low' is above 'high'. Swap them.",
                                            f"{start}nothing is that low."]


@pytest.mark.parametrize("data", [None, [], ["name"], "name", 3])
def test_what_is_no_mapping_at_the_top_is_refused(data: Any) -> None:
    [line] = mistakes(data)
    assert type(data).__name__ in line


def test_nothing_is_suggested_for_a_word_like_no_other() -> None:
    assert nearest("xyz", ["name", "visitors"]) == ""
    assert nearest("visitor", ["name", "visitors"]) == " Did you mean 'visitors'?"


def test_only_a_near_name_is_suggested() -> None:
    assert nearest("interleaving", ["untrained", "kl"]) == ""
    assert nearest("untraned", ["interleaving", "untrained"]) == " Did you mean 'untrained'?"
