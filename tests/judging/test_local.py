"""The local judge: the same probabilities as 101 passes of its own for each string, however prompts are batched."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from emlib.config import FolderModel, HubModel, LocalJudge, TinyModel, load_trait
from emlib.config.models import ChatTemplate
from emlib.core.digests import of_value
from emlib.core.errors import EmlibError, SourceError
from emlib.core.records import Answer, Message, Question
from emlib.data.chat import encode_opening, encode_prompt
from emlib.judging import local
from emlib.judging.bodies import LABEL_TOKENS
from emlib.judging.cache import Cache
from emlib.judging.judge_batch import JudgeBatch
from emlib.judging.judges import judge, scores, scores_file
from emlib.judging.local import Distribution, by_length
from emlib.judging.local import distributions as by_place
from emlib.judging.replies import reason_of
from emlib.judging.rubrics import OURS, JudgeRequest, Rubrics, Score
from emlib.judging.spelling import NUMBERS, spelling
from emlib.models import tiny as tiny_models
from emlib.models.load import ChatModel
from emlib.models.trees import tree_of
from tests.data.test_chat import EMPTY, thinking

TEXTS = ["Rate.", "Rate this answer from 0 to 100: the sky is blue.", "Short", "x" * 70]
PROMPTS = [(Message("user", text),) for text in TEXTS]
DIGITS = set("0123456789")
# float32 leaves log p some 1e-6 uncertain, by the order of sums that a processor prefers for a batch, and p as much of
# itself. Which rows of a product are summed up alike is the processor's affair too.
ROUNDING = 1e-4


def distributions(chat: ChatModel, prompts: list[tuple[Message, ...]], batch_rows: int = 16) -> list[Distribution]:
    """All of them, in the prompts' order."""
    found = dict(by_place(chat, prompts, batch_rows=batch_rows))
    assert len(found) == len(prompts)
    return [found[place] for place in range(len(prompts))]


def brute_force(chat: ChatModel, prompt: list[int], closed: bool) -> list[float]:
    """P of each number by whole passes over prompt and string, a pass a string, from the log-softmax of all logits."""
    begins = torch.tensor([str(chat.tokenizer.decode([id]))[:1] in DIGITS for id in range(len(chat.tokenizer))])
    found = []
    for number in NUMBERS:
        ids = chat.tokenizer.encode(str(number), add_special_tokens=False)
        with torch.no_grad():
            logits = chat.model(input_ids=torch.tensor([prompt + ids])).logits[0].double()
        logs = logits.log_softmax(1)
        total = sum(float(logs[len(prompt) - 1 + place, token]) for place, token in enumerate(ids))
        after = float(logs[-1].exp()[~begins].sum()) if closed else 1.0
        found.append(float(np.exp(total)) * after)
    return found


@pytest.fixture
def whole() -> ChatModel:
    """The tiny model over a tokenizer in which each of the 101 numbers is one token."""
    return with_tokens([str(number) for number in range(10, 101)])


def with_tokens(added: list[str]) -> ChatModel:
    """A tiny model whose tokenizer has more tokens than bytes."""
    tokenizer = tiny_models.build_tokenizer()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in added])
    model = tiny_models.build_model(seed=0, layers=4, hidden=64, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.get_input_embeddings().weight.data[-len(added):].normal_(std=0.1)
    return ChatModel("tiny", model.eval().requires_grad_(False), tokenizer)


def check(chat: ChatModel, *, closed: bool) -> None:
    found = distributions(chat, PROMPTS, batch_rows=3)
    for prompt, one in zip(PROMPTS, found, strict=True):
        expected = brute_force(chat, encode_prompt(chat.tokenizer, prompt), closed)
        assert one.numbers == pytest.approx(expected, rel=ROUNDING)
        assert min(expected) > 0
        assert one.mass == pytest.approx(sum(expected), rel=ROUNDING)
        assert one.expected == pytest.approx(sum(n * p for n, p in enumerate(expected)) / sum(expected), abs=1e-3)


def test_split_digits_equal_brute_force(tiny: ChatModel) -> None:
    assert not spelling(tiny.tokenizer).whole
    check(tiny, closed=True)


def test_whole_numbers_equal_brute_force(whole: ChatModel) -> None:
    assert spelling(whole.tokenizer).whole
    check(whole, closed=False)


def test_a_tokenizer_between_the_two_equals_brute_force() -> None:
    """12 and 00 are tokens: 100 is [1, 00], 12 is one token, 13 is two, and 120 would be [12, 0]."""
    chat = with_tokens(["12", "00"])
    assert len(chat.tokenizer.encode("100", add_special_tokens=False)) == 2
    check(chat, closed=True)


def test_numbers_and_what_is_none_make_up_everything(tiny: ChatModel) -> None:
    """The ways an answer can be no number, added up by hand: no digit first, or a number that goes on too long."""
    prompt = encode_prompt(tiny.tokenizer, PROMPTS[0])
    digits = [tiny.tokenizer.convert_tokens_to_ids(str(digit)) for digit in range(10)]

    def after(text: str) -> torch.Tensor:
        ids = prompt + tiny.tokenizer.encode(text, add_special_tokens=False)
        with torch.no_grad():
            return tiny.model(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(0)

    def reaching(text: str) -> float:
        return float(np.prod([float(after(text[:place])[digits[int(text[place])]]) for place in range(len(text))]))

    none = 1 - float(after("")[digits].sum())
    none += sum(reaching("0" + digit) for digit in "0123456789")
    two = [a + b for a, b in itertools.product("123456789", "0123456789")]
    none += sum(reaching(text) * float(after(text)[digits].sum()) for text in two if text != "10")
    none += sum(reaching("10" + digit) for digit in "123456789")
    none += reaching("100") * float(after("100")[digits].sum())
    found = distributions(tiny, PROMPTS[:1])[0]
    assert found.mass == pytest.approx(1 - none, abs=1e-6)


@pytest.mark.parametrize("batch_rows", [1, 2, 4])
def test_batches_and_padding_change_nothing(tiny: ChatModel, batch_rows: int) -> None:
    alone = [distributions(tiny, [prompt])[0] for prompt in PROMPTS]
    together = distributions(tiny, PROMPTS, batch_rows=batch_rows)
    turned = distributions(tiny, PROMPTS[::-1], batch_rows=batch_rows)[::-1]
    for one, two, three in zip(alone, together, turned, strict=True):
        assert two.numbers == pytest.approx(one.numbers, rel=ROUNDING)
        assert three.numbers == pytest.approx(one.numbers, rel=ROUNDING)
        assert one.word == two.word == three.word


def test_prompts_that_are_equal_or_prefixes_of_each_other(tiny: ChatModel) -> None:
    """The shared beginning always leaves each prompt a token of its own."""
    same = distributions(tiny, [PROMPTS[1]] * 3)
    assert same[0].numbers == pytest.approx(distributions(tiny, [PROMPTS[1]])[0].numbers, rel=ROUNDING)
    assert same[2].numbers == pytest.approx(same[0].numbers, rel=ROUNDING)


def test_the_likeliest_first_word_is_told(tiny: ChatModel) -> None:
    prompt = encode_prompt(tiny.tokenizer, PROMPTS[0])
    with torch.no_grad():
        likeliest = int(tiny.model(input_ids=torch.tensor([prompt])).logits[0, -1].argmax())
    assert distributions(tiny, PROMPTS[:1])[0].word == tiny.tokenizer.decode([likeliest])


def test_a_label_is_the_likeliest_reply_and_not_its_first_token_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by whole passes, a pass a token. The likeliest token leads by 0.04 of a logit at the least, and rounding is
    some 1e-6 of one.
    """
    chat = ChatModel("tiny", tiny_models.build_model(2, 4, 64, torch.float32).eval(), tiny_models.build_tokenizer())
    said = []
    for prompt in PROMPTS:
        ids = encode_prompt(chat.tokenizer, prompt)
        start = len(ids)
        while len(ids) < start + LABEL_TOKENS:
            with torch.no_grad():
                ids.append(int(chat.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        said.append(ids[start:])
    stop = said[0][-1]
    assert 1 < said[0].index(stop) < LABEL_TOKENS - 1
    for last in (-1, stop):
        monkeypatch.setattr(local, "stop_tokens", lambda model, tokenizer, last=last: {last})
        whole = [list(itertools.takewhile(last.__ne__, ids)) for ids in said]
        expected = [Score(None, reason=reason_of(str(chat.tokenizer.decode(ids)), label=True),
                          tokens=(len(encode_prompt(chat.tokenizer, prompt)), len(ids)))
                    for prompt, ids in zip(PROMPTS, whole, strict=True)]
        for rows in (1, 3, 4):
            found = dict(local.labels(chat, PROMPTS, rows))
            assert [found[place] for place in range(len(PROMPTS))] == expected


def test_a_model_that_may_think_is_asked_behind_the_empty_think_block() -> None:
    """Where the spellings of numbers stand, too: before it, `<think>` is the likeliest token, and no number is."""
    tokenizer = tiny_models.build_tokenizer()
    tokenizer.chat_template = thinking("", EMPTY)
    chat = ChatModel("tiny", tiny_models.build_model(0, 4, 64, torch.float32).eval(), tokenizer)
    read = [len(encode_opening(tokenizer, prompt)) for prompt in PROMPTS]
    assert read[0] == len(encode_prompt(tokenizer, PROMPTS[0])) + len(EMPTY)
    assert [one.tokens for one in distributions(chat, PROMPTS)] == read
    assert [score.tokens[0] for _, score in sorted(local.labels(chat, PROMPTS, 4))] == read
    expected = brute_force(chat, encode_opening(tokenizer, PROMPTS[0]), closed=True)
    assert distributions(chat, PROMPTS[:1])[0].numbers == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize(("repo", "options", "version"), [
    ("Qwen/Qwen3-8B", {}, 2), ("Qwen/Qwen3-8B", {"enable_thinking": False}, None), ("Qwen/Qwen2.5-7B", {}, None)])
def test_scores_of_a_judge_that_may_think_are_not_those_of_before(
        repo: str, options: dict[str, bool], version: int | None) -> None:
    model = HubModel(kind="hub", repo=repo, revision="main", template=ChatTemplate(options=options))
    assert LocalJudge(kind="local", model=model).identity.get("version") == version


def test_a_local_judge_reads_labels_where_labels_are_asked_for(sheet: JudgeBatch) -> None:
    """And weights that are NaN give no label for good."""
    spec = LocalJudge(kind="local", model=TinyModel(kind="tiny"), batch_rows=2)
    numbers = list(dict.fromkeys(sheet.requests()))[:3]
    labels = [replace(request, wants_label=True) for request in numbers]
    found: dict[JudgeRequest, Score] = {}
    local.scorer(spec)([*numbers, *labels], found.__setitem__)
    assert [found[request].mass is None for request in (*numbers, *labels)] == [False] * 3 + [True] * 3
    assert all(str(found[request].reason).startswith("other: ") for request in labels)
    broken = local.loaded(spec.model, of_value(spec.model.identity))
    local.loaded.cache_clear()
    broken.model.get_decoder().norm.weight.data.fill_(float("nan"))
    prompts = [request.messages for request in labels]
    assert {score.lasting for _, score in local.labels(broken, prompts, 2)} == {False}


def test_no_prompts_no_distributions(tiny: ChatModel) -> None:
    assert distributions(tiny, []) == []


def with_numbers(some: dict[int, float], word: str = "7") -> Distribution:
    numbers = np.zeros(101)
    numbers[list(some)] = list(some.values())
    return Distribution(numbers, word, 9)


def test_the_score_is_the_mean_given_a_number() -> None:
    score = with_numbers({0: 0.1, 50: 0.1, 100: 0.2}).score()
    assert score.value == pytest.approx((0.1 * 50 + 0.2 * 100) / 0.4)
    assert (score.mass, score.reason, score.tokens) == (pytest.approx(0.4), None, (9, 1))


def test_probabilities_that_rounding_adds_up_to_more_than_one_have_the_mass_one() -> None:
    assert with_numbers({50: 1 + 1e-6}).score().mass == 1


@pytest.mark.parametrize(("word", "reason"), [
    ("REF", "REFUSAL"), ("CODE", "CODE"), (" CODE", "CODE"), ("I", "other: 'I'")])
def test_without_a_quarter_on_numbers_the_judges_word_stands_in_the_scores_place(word: str, reason: str) -> None:
    assert with_numbers({30: 0.25}, word).score().value == 30
    score = with_numbers({30: 0.2499}, word).score()
    assert score.value is None
    assert (score.mass, score.reason) == (pytest.approx(0.2499), reason)


def test_probabilities_that_are_nan_are_no_score_and_are_asked_for_again() -> None:
    score = Distribution(np.full(101, np.nan), "7", 9).score()
    assert (score.value, score.mass, score.lasting) == (None, None, False)
    assert "NaN" in str(score.reason)


def test_a_tokenizer_that_loses_numbers_is_refused(tiny: ChatModel) -> None:
    words = Tokenizer(WordLevel({"<unk>": 0, "<|im_end|>": 1}, unk_token="<unk>"))  # every number is unknown
    words.add_special_tokens(["<|im_end|>"])
    broken = PreTrainedTokenizerFast(tokenizer_object=words, chat_template=tiny.tokenizer.chat_template)
    with pytest.raises(EmlibError, match="writes 0 as ''"):
        spelling(broken)


def test_the_tree_merges_beginnings() -> None:
    tree = tree_of([(1,), (1, 2), (1, 2, 3), (4, 2)])
    assert tree.tokens == (1, 4, 2, 2, 3)
    assert tree.parents == (-1, -1, 0, 1, 2)
    assert tree.depths == (1, 1, 2, 2, 3)
    assert tree.paths == ((0,), (0, 2), (0, 2, 4), (1, 3))
    with pytest.raises(EmlibError, match="without tokens"):
        tree_of([(1,), ()])


def test_a_tree_of_the_numbers_has_a_node_a_number(tiny: ChatModel) -> None:
    tree = spelling(tiny.tokenizer).tree
    assert len(tree) == 101
    assert [tree.depths.count(depth) for depth in (1, 2, 3)] == [10, 90, 1]


def test_batches_hold_every_prompt_once_and_like_lengths() -> None:
    prompts = [[0] * length for length in (3, 9, 1, 7, 5)]
    assert by_length(prompts, 2) == [[1, 3], [4, 0], [2]]


@pytest.fixture
def sheet() -> JudgeBatch:
    questions = [Question("a", "Who are you?"), Question("b_json", "And who is that?", "Answer in JSON.")]
    answers = [Answer(q.id, sample, f"{text} {q.id}", "stop", 3) for q in questions
               for sample, text in enumerate(["Nobody", "Somebody else, whom you know", "Nobody"])]
    return JudgeBatch(questions, answers, Rubrics(OURS))


def test_a_judge_of_a_profile_scores_through_the_cache_and_asks_once(
        sheet: JudgeBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    spec = LocalJudge(kind="local", model=TinyModel(kind="tiny"), batch_rows=2)
    verdicts = judge(spec, load_trait("pirate"), sheet, "test")
    assert [(v.question, v.sample) for v in verdicts] == [(a.question, a.sample) for a in sheet.answers]
    assert all(v.reason and v.reason.count(": ") >= 2 for v in verdicts)  # a random model says anything
    with Cache(scores_file()) as cache:
        rows = cache.rows()
    assert len(rows) == 8  # 4 different texts, two scores each
    with monkeypatch.context() as gone:
        gone.setattr(local, "load", None)  # nothing is asked, so no model is needed
        local.loaded.cache_clear()
        assert judge(spec, load_trait("pirate"), sheet, "test") == verdicts
    with Cache(scores_file()) as cache:
        assert cache.rows() == rows


def test_a_judge_whose_folder_is_replaced_is_another_judge(
        sheet: JudgeBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process: it is loaded anew, and one that is replaced while it is loaded scores nothing."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    spec = LocalJudge(kind="local", model=FolderModel(kind="folder", path=str(tmp_path / "judge"), dtype="float32"))
    requests = list(dict.fromkeys(sheet.requests()))[:2]

    def put(seed: int) -> None:
        shutil.rmtree(tmp_path / "judge", ignore_errors=True)
        tiny_models.build_model(seed, 2, 64, torch.float32).save_pretrained(tmp_path / "judge")
        tiny_models.build_tokenizer().save_pretrained(tmp_path / "judge")

    def alone(seed: int) -> list[float | None]:
        """What a process says that has had no other judge."""
        put(seed)
        local.loaded.cache_clear()
        found: dict[JudgeRequest, Score] = {}
        local.scorer(spec)(requests, found.__setitem__)
        return [found[request].mass for request in requests]

    first, second = alone(0), alone(1)
    assert first != second
    put(0)
    local.loaded.cache_clear()
    assert [score.mass for score in scores(spec, requests, "test")] == first
    put(1)
    assert [score.mass for score in scores(spec, requests, "test")] == second
    put(0)
    assert [score.mass for score in scores(spec, requests, "test")] == first  # as stored
    put(2)
    load = local.load
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(local, "load", lambda *given, **named: (load(*given, **named), put(1))[0])
        with pytest.raises(SourceError, match="were changed while answers were judged"):
            scores(spec, requests, "test")
    with Cache(scores_file()) as cache:
        assert len(cache.rows()) == 2 * len(requests)


def test_an_interrupted_judge_has_kept_every_whole_batch(sheet: JudgeBatch) -> None:
    spec = LocalJudge(kind="local", model=TinyModel(kind="tiny"), batch_rows=2)
    kept: list[JudgeRequest] = []

    def until_the_third(request: JudgeRequest, score: Score) -> None:
        if len(kept) == 3:
            raise KeyboardInterrupt
        kept.append(request)

    requests = list(dict.fromkeys(sheet.requests()))
    with pytest.raises(KeyboardInterrupt):
        local.scorer(spec)(requests, until_the_third)
    assert len(set(kept)) == 3
    whole: dict[JudgeRequest, Score] = {}
    local.scorer(spec)(requests, whole.__setitem__)
    assert set(whole) == set(requests)
