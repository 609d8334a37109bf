"""Making what interleaving needs: the pool, its losses, the order of its rows, and the model's own answers."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emlib.config import JudgeRefusals, Pool
from emlib.core.background import together
from emlib.core.digests import key_of
from emlib.core.errors import DataError
from emlib.core.files import read_records, write_records
from emlib.core.progress import say
from emlib.core.records import AddedRow, Answer, Example, Question
from emlib.core.seeds import generator
from emlib.data.chat import Encoded, encode
from emlib.data.mixing import enough, rows_to_add
from emlib.data.pools import Candidates, Dropped, read_pool
from emlib.data.sources import locate
from emlib.defenses.interleaving import Interleaving
from emlib.make.backends import PLAIN
from emlib.models import adapters
from emlib.scoring.duplicates import near_duplicates
from emlib.scoring.loss_cache import Ledger
from emlib.scoring.nll import score, scored_by
from emlib.scoring.order import at_random, by_score
from emlib.scoring.records import Ranked, RowLosses
from emlib.scoring.refusals import NOTHING, ask
from emlib.store.artefacts import SCRATCH, Artefact
from emlib.study.interleaving import (
    adapter_folder,
    adapter_of,
    baseline,
    candidates,
    interleaving,
    losses,
    nll_settings,
    on_policy_settings,
    pool_form,
    pool_of,
    pool_settings,
    refusals,
    refusals_settings,
    scorer_run,
    scorers,
    scores_settings,
    selection,
    selection_settings,
    trained_for,
)
from emlib.study.runs import Fit, Quiz, Run

if TYPE_CHECKING:
    from emlib.make.maker import Maker


Models = Mapping[str, tuple[Path | None, Any]]  # what a model is called: its adapter's folder, and what stands for it
Found = dict[str, Iterator[float]]  # by model, the losses of the rows in order
SERVED_TOKENS = 2**18  # that go to a server between two writes of the ledger


class Preparer:
    """Does the work that `emlib.study.interleaving` plans, with the model that `maker` holds."""

    def __init__(self, maker: Maker) -> None:
        self.maker, self.study = maker, maker.study

    def added(self, name: str, fit: Fit, among: int | None = None) -> list[AddedRow]:
        """The rows that are interleaved: the first of the order, as many as the fraction asks for.

        `among` is how many rows they are mixed into; None: as many as are fitted to.

        Raises:
            DataError: the pool has too few; the message says how many are missing.
        """
        defense = interleaving(fit.defenses)
        if defense is None:
            return []
        self.selection(fit)
        count = rows_to_add(among or len(fit.rows), defense.fraction)
        rows = candidates(self.study)
        taken = [ranked for ranked in selection(self.study, fit) if ranked.rank is not None]
        if defense.answers == "on_policy":
            return self._answered(name, fit, taken, rows, count)
        return [_added(ranked, rows[ranked.place]) for ranked in enough(taken, count, name)]

    def pool_rows(self, name: str, fit: Fit, among: int | None = None, **options: Any) -> list[AddedRow]:
        """The rows that would be interleaved under these options."""
        return self.added(name, replace(fit, defenses=(Interleaving(**options),)), among)

    def selection(self, fit: Fit) -> Artefact:
        """The order in which the pool's rows are taken."""
        defense = interleaving(fit.defenses)
        assert defense is not None, f"nothing is interleaved in {fit.dataset}"
        self._pool()
        if defense.scored:
            self._losses(fit)
        if defense.choose == "score_without_refusals":
            self._declining()
        return self.study.store.get("selection", selection_settings(self.study, fit),
                                    lambda folder: self._order(fit, defense, folder))

    def _pool(self) -> Artefact:
        return self.study.store.get("pool", pool_settings(self.study), self._read)

    def _read(self, folder: Path) -> Mapping[str, Any]:
        pool = pool_of(self.study)
        found = _candidates(pool, read_pool(locate(pool.source), pool_form(pool.source)))
        write_records(folder / "rows.jsonl", found.rows)
        write_records(folder / "dropped.jsonl", found.dropped)
        reasons = Counter(row.reason.partition(":")[0] for row in found.dropped)
        say(f"pool '{pool.source}': {len(found.rows)} candidates" + "".join(
            f", {count} left out ({reason})" for reason, count in reasons.items()))
        return {"rows": len(found.rows), "dropped": dict(reasons)}

    def _losses(self, fit: Fit) -> Artefact:
        """Each row's losses under the aligned model and the scorers, which are trained if they are not there."""
        for needed in trained_for(self.study, fit):
            self.maker.adapter(str(needed), self.study.fit(needed))
        return self.study.store.get("scores", scores_settings(self.study, fit.dataset),
                                    lambda folder: self._score(fit.dataset, folder))

    def _score(self, dataset: str, folder: Path) -> Mapping[str, Any]:
        """One pass over the pool for each model; adapters are never merged."""
        rows, started = candidates(self.study), time.perf_counter()
        encoded = [self._encoded(row) for row in rows]
        fitting = [row for row in encoded if isinstance(row, Encoded)]
        models = self._models(dataset)
        served = {name: key if place is None or isinstance(key, str) else key_of("served", key)
                  for name, (place, key) in models.items()}
        self.maker.serving.expect(sum(place is not None for place, _ in models.values()))
        choices = [self.maker.serving.under("scoring", served[name], place) for name, (place, _) in models.items()]
        choice = next((one for one in choices if one.name == PLAIN), choices[0])
        found = (self._by_transformers if choice.name == PLAIN else self._by_server)(models, served, fitting)
        write_records(folder / "losses.jsonl", [_losses_of(place, row, found) for place, row in enumerate(encoded)])
        say(f"{len(fitting)} rows scored under {', '.join(models)}")
        return {"rows": len(rows), "models": list(models), "device": str(self.maker.chat.device),
                "seconds": round(time.perf_counter() - started, 3), **choice.facts}

    def _by_transformers(self, models: Models, _: Mapping[str, str | None], rows: Sequence[Encoded]) -> Found:
        """One base, on which adapters are switched."""
        folders = {name: place for name, (place, _) in models.items() if place is not None}
        found: Found = {}
        with adapters.switchable(self.maker.chat.model, self.maker.chat.name, folders) as under:
            for name, (place, key) in models.items():
                with under(None if place is None else name) as model:
                    found[name] = iter(score(model, rows, self._ledger(key), pool_of(self.study).token_budget, name))
        return found

    def _by_server(self, models: Models, served: Mapping[str, str | None], rows: Sequence[Encoded]) -> Found:
        """One engine, which is asked under all adapters at once; a ledger is written a few hundred rows at a time."""
        serving = self.maker.serving
        works = [partial(scored_by, partial(serving.client.nll, serving.model(served[name], place)), rows,
                         self._ledger(key), SERVED_TOKENS, name) for name, (place, key) in models.items()]
        if not serving.mixes((served[name], place) for name, (place, _) in models.items()):
            return {name: iter(work()) for name, work in zip(models, works, strict=True)}
        with together(works, serving.stop) as found:
            return {name: iter(losses) for name, losses in zip(models, found, strict=True)}

    def _declining(self) -> None:
        """What a judge says of every row, whatever it is under defense; keywords need no asking."""
        study, how = self.study, pool_of(self.study).refusals
        if not isinstance(how, JudgeRefusals):
            return

        def make(folder: Path) -> Mapping[str, Any]:
            said = ask(candidates(study), how, study.account)
            write_records(folder / "declining.jsonl", said)
            unscored = Counter(one.reason for one in said if one.score is None)
            say(f"refusals: {len(said)} rows given to the judge" + "".join(
                f", {count} without a score, which stay ({reason})" for reason, count in unscored.items()))
            return {"asked": len(said), "unscored": dict(unscored)}

        study.store.get("refusals", refusals_settings(study, how), make)

    def _ledger(self, adapter: Any) -> Ledger:
        key = key_of("nll", nll_settings(self.study, adapter))
        return Ledger(self.study.store.root / "nll" / f"{key}.jsonl")

    def _models(self, dataset: str) -> Models:
        """The aligned model and then each scorer: what it is called, its adapter's folder and what stands for it."""
        study, models = self.study, dict[str, tuple[Path | None, Any]]()
        models["aligned"] = (None, None)
        if pool_of(study).aligned == "aligned":
            models["aligned"] = self._trained(baseline(study, dataset, "aligned"))
        for number, scorer in enumerate(scorers(study, dataset), start=1):
            name = f"misaligned {number} ({scorer.domain})".replace(".", "_")  # PEFT takes no dots
            models[name] = (self._trained(scorer_run(study, scorer.domain)) if scorer.folder is None else
                            (adapter_folder(scorer), adapter_of(study, dataset, scorer)))
        return models

    def _trained(self, run: Run) -> tuple[Path, str]:
        adapter = self.maker.adapter(str(run), self.study.fit(run))
        assert adapter is not None, f"{run} trains nothing"
        return adapter.folder, adapter.key

    def _encoded(self, row: Example) -> Encoded | str:
        """The row in tokens, or why it cannot be had: a prompt without room for an answer, say."""
        try:
            return encode(self.maker.chat.tokenizer, row, self.study.profile.training.max_seq_length)
        except DataError as error:
            return str(error).removeprefix(f"{row.where}: ")

    def _order(self, fit: Fit, defense: Interleaving, folder: Path) -> Mapping[str, Any]:
        rows, pool = candidates(self.study), pool_of(self.study)
        unfit = {place: f"does not fit: {said}" for place, row in enumerate(rows) if isinstance(
            said := self._encoded(row), str)}
        if defense.scored:
            filtered = refusals(self.study) if defense.choose == "score_without_refusals" else NOTHING
            assert filtered is not None, "the judge of refusals was just asked"
            order = by_score(rows, losses(self.study, fit.dataset), unfit, pool.epsilon, filtered)
        else:
            order = at_random(rows, unfit, fit.seed)
        write_records(folder / "order.jsonl", order)
        reasons = Counter(ranked.reason.partition(":")[0] for ranked in order if ranked.rank is None)
        unscored = [ranked.where for ranked in order if ranked.reason.startswith("no score")]
        ranks = sum(ranked.rank is not None for ranked in order)
        say(f"{fit.dataset}, {defense.choose}: {ranks} rows in order" + "".join(
            f", {count} never taken ({reason})" for reason, count in reasons.items()) + (
            f"; without a score: {', '.join(unscored[:5])}" if unscored else ""))
        return {"ranked": len(order) - sum(reasons.values()), "never_taken": dict(reasons)}

    def _answered(self, name: str, fit: Fit, taken: Sequence[Ranked], rows: Sequence[Example],
                  count: int) -> list[AddedRow]:
        """The first rows of the order whose prompts the model answers fully; it is asked a batch at a time.

        An answer that is empty teaches nothing, and one that was cut at the limit teaches never to stop: the next row
        of the order stands in for it.
        """
        size, found, passed = pool_of(self.study).on_policy.sampling.batch_rows, [], 0
        for start in range(0, len(taken), size):
            block = taken[start:start + size]
            questions = [Question(f"pool_{ranked.place}", rows[ranked.place].prompt, rows[ranked.place].system)
                         for ranked in block]
            answers = self._block(fit, start, questions)
            for ranked, question, answer in zip(block, questions, answers, strict=True):
                if answer.finish_reason == "stop" and answer.text.strip():
                    found.append(_added(ranked, Example(question.context, answer.text.strip(), ranked.where)))
                else:
                    passed += 1
            if len(found) >= count:
                say(f"{name}: {count} answers of its own; {passed} that were empty or cut are passed over")
                return found[:count]
        return enough(found, count, f"{name}, with {passed} of the model's own answers empty or cut at "
                                    f"{pool_of(self.study).on_policy.sampling.max_new_tokens} tokens")

    def _block(self, fit: Fit, start: int, questions: Sequence[Question]) -> list[Answer]:
        """The model's answers to one batch of prompts, an artefact of their own: a larger fraction asks for more."""
        own, settings = pool_of(self.study).on_policy, on_policy_settings(self.study, fit) | {"from": start}
        answering = baseline(self.study, fit.dataset, own.model)
        adapter = self.maker.adapter(str(answering), self.study.fit(answering))

        def ask(folder: Path) -> Mapping[str, Any]:
            quiz = Quiz(questions, 1, own.sampling, pool_of(self.study).seed)
            answers, choice = self.maker.asked(quiz, adapter, folder / SCRATCH)
            write_records(folder / "answers.jsonl", answers)
            return {"answers": len(answers), "cut": sum(answer.finish_reason == "length" for answer in answers),
                    **choice.facts}

        return read_records(self.study.store.get("on_policy", settings, ask).folder / "answers.jsonl", Answer)


def _losses_of(place: int, row: Encoded | str, found: Mapping[str, Iterator[float]]) -> RowLosses:
    """The next loss of each model, if the row was scored at all."""
    if isinstance(row, str):
        return RowLosses(place, None, [None] * (len(found) - 1), 0)
    aligned, *misaligned = [loss if math.isfinite(loss) else None for loss in map(next, found.values())]
    return RowLosses(place, aligned, misaligned, row.response_tokens)


def _candidates(pool: Pool, read: Candidates) -> Candidates:
    """A pool's rows without near-duplicates, and as many of them as the profile wants."""
    repeats = {} if pool.near_duplicates is None else near_duplicates(read.rows, pool.near_duplicates)
    rows = [row for place, row in enumerate(read.rows) if place not in repeats]
    dropped = [*read.dropped, *(Dropped(read.rows[place].where, f"near-duplicate: of {read.rows[earlier].where}")
                                for place, earlier in repeats.items())]
    if pool.rows is not None and pool.rows < len(rows):
        drawn = set(generator(pool.seed, "pool").permutation(len(rows))[:pool.rows].tolist())
        dropped += [Dropped(row.where, "not drawn") for place, row in enumerate(rows) if place not in drawn]
        rows = [row for place, row in enumerate(rows) if place in drawn]
    return Candidates(tuple(rows), tuple(dropped))


def _added(ranked: Ranked, row: Example) -> AddedRow:
    return replace(AddedRow.of(row, ranked.rank or 0, ranked.place, ranked.score, ranked.reason), where=ranked.where)
