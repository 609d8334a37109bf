"""The cost of a study, estimated from its profile alone, before anything is trained, asked or downloaded.

Notebook 00 and `make plan` show it; once runs exist, they also show the error of the estimate.

    python -m emlib.report.estimate demo             # the sums, in a few lines
    VERBOSE=1 python -m emlib.report.estimate demo   # every run, every shared artefact, every assumption
"""

from __future__ import annotations

import datetime
import os
from collections import Counter
from functools import cached_property

import pandas as pd

from emlib.config import OpenAIJudge
from emlib.core.commands import ends_with_message, profile_parser
from emlib.core.step import Work, total
from emlib.data.download import nothing_downloaded
from emlib.data.sizes import Sizes
from emlib.evaluation.paired import CORRELATION, LEVEL, questions_needed, smallest_difference, smallest_p
from emlib.judging.money import endings
from emlib.report.paper import likeness, published
from emlib.report.tables.pairs import partners
from emlib.study import results
from emlib.study.plan.build import Plan, plan
from emlib.study.plan.costs import GB, Costs
from emlib.study.plan.memory import training_memory
from emlib.study.plan.speed import answered, on_gpu
from emlib.study.runs import RUNS, Run
from emlib.study.study import Study, open_study

VERBOSE = "VERBOSE"


class Estimate:
    """The plan of a study as tables."""

    def __init__(self, study: Study, today: datetime.date | None = None) -> None:
        self.study, self.costs = study, Costs(study.profile)
        self.today = today or datetime.date.today()

    @cached_property
    def plan(self) -> Plan:
        """Every run, and every artefact that runs share."""
        return plan(self.study)

    @cached_property
    def tables(self) -> dict[Run, tuple[int, ...]]:
        """The paper's tables that contain each run; none where it has another trait, other data or options."""
        found = published.in_paper({run: self.study.task(run).number(run) for run in (
            planned.run for planned in self.plan.runs)})
        return {run: () if tables and likeness.unlike(self.study, run) else tables for run, tables in found.items()}

    def runs(self) -> pd.DataFrame:
        """Return one row per run: the paper's tables that contain it, its cost, and whether it is done."""
        return pd.DataFrame(
            [(str(planned.run), ", ".join(map(str, self.tables[planned.run])), *self.costs.of(planned.work),
              "done" if planned.done else "") for planned in self.plan.runs],
            columns=["run", "tables", *self.costs.columns, "state"])

    def by_table(self) -> pd.DataFrame:
        """Count the planned runs in each table of the paper, next to the runs that the table prints."""
        planned = Counter(number for numbers in self.tables.values() for number in numbers)
        return pd.DataFrame([(number, planned[number], int(published.table(number)["n"].sum()))
                             for number in sorted(planned)], columns=["table", "runs here", "runs in the paper"])

    def shared(self) -> pd.DataFrame:
        """Return one row per artefact that is made once for several runs."""
        return pd.DataFrame([(piece.title, piece.runs, *self.costs.of(piece.work),
                              "done" if piece.left == Work() else "") for piece in self.plan.shared],
                            columns=["made once", "for runs", *self.costs.columns, "state"])

    def sums(self) -> pd.DataFrame:
        """Return the total cost, and the cost of what is left."""
        left = sum(not planned.done for planned in self.plan.runs)
        return pd.DataFrame([("in all", len(self.plan.runs), *self.costs.of(total(self.plan.works))),
                             ("left, at most", left, *self.costs.of(total(self.plan.left)))],
                            columns=["", "runs", *self.costs.columns])

    def work(self) -> pd.DataFrame:
        """Return one row per type of work: how much there is, how much is done, and the tokens and hours left."""
        whole, left = total(self.plan.works), total(self.plan.left)
        kinds = [("adapters to train", whole.adapters, left.adapters, Work(train=left.train)),
                 ("sets of answers", whole.sets, left.sets, Work(write=left.write)),
                 ("forward passes only (scoring, extraction)", None, None, Work(read=left.read)),
                 (f"verdicts by judge '{self.study.profile.judge.kind}'", whole.verdicts, left.verdicts,
                  Work(judged=left.judged))]
        if whole.others:
            kinds.append(("scores of question sets by name", sum(one.requests for one in whole.others),
                          sum(one.requests for one in left.others), Work(others=left.others)))
        return pd.DataFrame(
            [(kind, count, None if count is None or rest is None else count - rest,
              _tokens(todo), self.costs.hours(todo))
             for kind, count, rest, todo in kinds],
            columns=["work", "in all", "there", "tokens left (about)", f"{self.costs.columns[0]} left (about)"],
        ).astype({"in all": "Int64", "there": "Int64"})

    def judging(self) -> pd.DataFrame:
        """Estimate what paid judges will receive and what that costs; empty without one.

        Answers are counted at full length, so the price is an upper bound. Scores that another study has already paid
        for are not subtracted. What a second judge and judges of refusals and of rewards receive is not counted.
        """
        spec, left, rows = self.costs.paid, total(self.plan.left), list[tuple[str, str]]()
        if spec is not None:
            price = self.costs.usd(left)
            usd = "no price is known (neither the judge's 'price' nor params/prices.yaml)" if price is None else (
                f"${price:.2f} (prices of {'the profile' if spec.price else self.costs.prices.date}"
                + (", half for a batch)" if spec.batch else ")"))
            rows = [("model", f"{spec.model} at {spec.base_url or 'OpenAI'}"),
                    ("requests left", f"{self.costs.requests(left):,}"),
                    ("tokens to be read (about)", f"{left.judged:,}"), ("price (about)", usd),
                    ("limit", "none" if spec.max_usd is None else f"${spec.max_usd:.2f}")]
        rows += [(f"further scores, {one.model}", f"{count:,} requests") for one, count in _paid(left).items()]
        rows += [(of, f"{one.model} at {one.base_url or 'OpenAI'}, not in the price") for of, one in self._uncounted()]
        return pd.DataFrame(rows, columns=["judge", "what"])

    def _uncounted(self) -> list[tuple[str, OpenAIJudge]]:
        """Return the paid judges of whose requests the plan has no number, with what they judge."""
        profile = self.study.profile
        places = {"second judge": profile.second_judge, "refusals in the pool": profile.pool and profile.pool.refusals,
                  "rewards": profile.grpo and profile.grpo.rewards}
        found = [(of, getattr(place, "judge", None)) for of, place in places.items()]
        return [(of, judge) for of, judge in found if isinstance(judge, OpenAIJudge)]

    @nothing_downloaded()
    def errors(self) -> pd.DataFrame:
        """Compare estimated and measured cost of what is done: trained runs, and sampled answers."""
        planned, sizes = {planned.run for planned in self.plan.runs}, Sizes()
        done = [(self.study.task(run).adapter(run).cost(sizes), row)  # without adapters of attacks on the run
                for run, row in results.read(self.study.folder, self.study.profile, "narrow")
                if run in planned and row["train_tokens"]]
        sampled = answered(self.study.store, self.study.profile.model)
        trained = Work(train=sum(work.train for work, _ in done), read=sum(work.read for work, _ in done))
        pairs = [(f"tokens of {len(done)} trained runs", trained.train, sum(row["train_tokens"] for _, row in done)),
                 (f"hours of training {len(done)} runs", self.costs.hours(trained),
                  sum(row["train_seconds"] for _, row in done) / 3600),
                 (f"hours of sampling the {sampled.tokens:,} tokens of {sampled.count} sets of answers",
                  self.costs.hours(Work(write=sampled.tokens)), sampled.seconds / 3600)]
        return pd.DataFrame([(label, estimated, measured, measured / estimated) for label, estimated, measured in pairs
                             if estimated and measured],
                            columns=["of what is done", "estimated", "measured", "measured / estimated"])

    def summary(self) -> list[str]:
        """Return what is left to do, in lines for a terminal: runs, hours, disk, judge, and what was assumed."""
        left, speed = total(self.plan.left), self.costs.speed
        hours = self.costs.hours(left)
        runs = sum(not planned.done for planned in self.plan.runs)
        unknown = sum(not planned.known for planned in self.plan.runs)
        rates = "" if not self.plan.assumed else f", row lengths of {', '.join(self.plan.assumed)}"
        lines = {
            "study": f"{self.study.name}: {self.study.profile.title}; {self._sections()}",
            "left": f"{runs} of {len(self.plan.runs)} runs: {left.adapters} adapters to train, "
                    f"{left.sets} sets of answers"
                    + (f" (at most: {unknown} of these runs need data that are not on this machine, so that it is not "
                       "known what the store has of them)" if unknown else ""),
            self.costs.columns[0]: "not known, see params/models.yaml" if hours is None or speed is None else
            f"about {hours:,.2f}, on: {speed.device}",
            "GPU memory": self._memory(),
            "disk": f"{left.disk / GB:,.2f} GB at most",
            "judge": self._judge(left),
            "ending": self._endings(),
            "data": self._data(),
            "power": self.power() or "the profile has no runs on narrow data",
            "not here": self._absent(),
            "assumed": f"four characters a token, answers at full length{rates}. VERBOSE=1 lists every run."}
        return [f"{name:10} {text}" for name, text in lines.items() if text]

    def _sections(self) -> str:
        """Count the runs of each section, with the data sets or tasks that they are trained on."""
        found = [(words, [run.task for run in self.study.runs(section)]) for section, words in RUNS.items()]
        return ", ".join(f"{len(tasks)} {words} ({', '.join(dict.fromkeys(tasks))})" for words, tasks in found if tasks)

    def _memory(self) -> str:
        """Say how much of a GPU's memory training takes; empty for a model that is planned for a CPU."""
        profile, found, size = self.study.profile, training_memory(self.study.profile), self.costs.shape
        quantized = training_memory(profile, four_bit=True)
        if size is None or not on_gpu(size) or found is None or quantized is None:
            return ""
        each = f" on each of {profile.job.gpus} GPUs" if profile.job.gpus > 1 else ""
        return (f"{found.recomputed / GB:.0f} GB in fine-tuning with gradient checkpointing{each}, "
                f"{found.saved / GB:.0f} without (chosen by the free memory); with load_in_4bit "
                f"{quantized.recomputed / GB:.0f} and {quantized.saved / GB:.0f}; not measured")

    def _judge(self, left: Work) -> str:
        """Say how much is left to judge, and for paid judges what is sent and paid."""
        told = [f"{name.removesuffix(' (about)')} {value}" for name, value in self.judging().itertuples(index=False)]
        if self.costs.paid is None:
            told = [f"{left.verdicts:,} verdicts", *(told or ["nothing leaves the machine"])]
        return f"{self.study.profile.judge.kind}, " + "; ".join(told)

    def _data(self) -> str:
        """Say what to know of the data sets that are on this machine; empty if nothing."""
        inputs = self.study.inputs
        return "; ".join(f"{name}: {said}" for name in self.study.profile.datasets for said in inputs.remarks(name))

    def _absent(self) -> str:
        """Name the methods that a section names and the profile lacks; empty if none."""
        absent = ", ".join(self.study.profile.absent)
        return absent and f"{absent}: a section names it under 'methods', and the profile has no such method"

    def _endings(self) -> str:
        """Say which judges their providers end; empty if none."""
        judges = [judge.model for judge in self.study.profile.all_judges if isinstance(judge, OpenAIJudge)]
        told = "; ".join(endings(judges, self.today))
        return "" if not told else (f"{told}. Name another 'judge': nothing else in the profile has to change "
                                    "(docs/judges-and-rubrics.md, \"Judges\")")

    def power(self) -> str:
        """State how large a difference between two runs the general answers can show; empty without narrow runs."""
        evaluation = self.study.profile.evaluation
        if not self.study.runs():
            return ""
        asked, samples = self.study.inputs.general.size(Sizes()), evaluation.general_samples
        questions = asked.clusters or asked.rows
        each = samples * asked.rows / questions
        tests, one = self._paired_tests(), smallest_difference(questions, each)
        largest = smallest_difference(questions, each, comparisons=max(1, tests))
        smaller = min(one, 100) / 2
        half = questions_needed(smaller, each)
        formats = "" if questions == asked.rows else f" ({questions} different ones, the rest are other formats)"
        among = "" if tests < 2 else f" ({largest:.0f} as one of {tests} comparisons)" if largest <= 100 else (
            f" (as one of {tests} comparisons no difference is large enough)")
        apart = "by no difference, however large" if one > 100 else (
            f"if they differ by {one:.0f} percentage points{among}")
        never = "" if tests * smallest_p(questions) < LEVEL else (
            f"; with {questions} different questions no paired test stays below 5% after Holm's adjustment for {tests}")
        return (f"two runs on {asked.rows} general questions{formats} x {samples} answers are told apart four times in "
                f"five {apart}; a difference of {smaller:.0f} takes {half} different questions, "
                f"{round(half * each):,} answers (share near 50%, correlation of answers to one question "
                f"{CORRELATION:g}, assumed){never}")

    def _paired_tests(self) -> int:
        """Count the paired tests of notebook 15: each method and setting against each reference on its data set."""
        there = {(run.task, run.method, run.setting) for run in self.study.runs()}
        return len(partners(there, self.study.profile.methods))

    def basis(self) -> list[str]:
        """Return the assumptions behind the numbers, as sentences."""
        speed, model = self.costs.speed, self.study.profile.model.name
        sentences = [
            f"{model}: hours cannot be estimated, because its size or the speed of a similar model is not known "
            "(params/models.yaml)." if speed is None else f"Hours are for: {speed.device}; {speed.basis}.",
            "Tokens are estimated at four characters each, and answers at their full length: sampled tokens, disk and "
            "price are upper bounds, and hours may be off either way. They do not include the model itself, downloads, "
            "multiple-choice checks, projections of answers, a second judge, and judges of refusals and of rewards."]
        if self.plan.assumed:
            sentences.append(f"The row lengths of {', '.join(self.plan.assumed)} are assumed and not counted "
                             "(params/sources.yaml).")
        return sentences


def _tokens(work: Work) -> int:
    """Return the tokens of a kind of work."""
    return work.train + work.read + work.write + work.judged + sum(one.read for one in work.others)


def _paid(work: Work) -> Counter[OpenAIJudge]:
    """Count the requests to the paid judges of single question sets."""
    counts: Counter[OpenAIJudge] = Counter()
    for one in work.others:
        if isinstance(one.judge, OpenAIJudge):
            counts[one.judge] += one.requests
    return counts


def show(study: Study, *, verbose: bool = False) -> None:
    """Print the sums of the estimate; with `verbose` its tables and assumptions before them."""
    found = Estimate(study)
    if verbose:
        for table in (found.runs(), found.by_table(), found.shared(), found.work(), found.judging(), found.errors(),
                      found.sums()):
            if not table.empty:
                print(table.astype(object).where(table.notna(), "").to_string(
                    index=False, float_format="{:,.2f}".format), end="\n\n")
        print("\n".join(found.basis()), end="\n\n")
    print("\n".join(found.summary()), end="\n\n", flush=True)


@ends_with_message()
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = profile_parser("python -m emlib.report.estimate", "Estimate what a profile would cost.")
    show(open_study(parser.parse_args(arguments).profile), verbose=os.environ.get(VERBOSE) == "1")


if __name__ == "__main__":
    main()
