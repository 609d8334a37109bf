"""The cost of work in hours, disk, requests and money, under one profile."""

from __future__ import annotations

from emlib.config import JudgeSpec, LocalJudge, OpenAIJudge, Profile
from emlib.config.shapes import shape
from emlib.core.step import JudgeWork, Work
from emlib.judging.money import price_list
from emlib.judging.rubrics import METRICS
from emlib.study.plan.memory import training_memory
from emlib.study.plan.speed import on_gpu, speed

GB = 1e9


class Costs:
    """The conversion of work into hours, disk, requests and money; None for what is not known."""

    def __init__(self, profile: Profile, *, gpu: bool = False) -> None:
        """Convert for the device that the model is planned for, or with `gpu` for a GPU, whatever this machine has."""
        self.shape = shape(profile.model)
        card, needed = profile.job.card, training_memory(profile)
        tight = card is not None and needed is not None and needed.saved > GB * (card.memory or needed.saved)
        self.speed = speed(profile.model, profile.evaluation.sampling, gpu=gpu, card=card, recomputed=tight)
        self.paid = profile.judge if isinstance(profile.judge, OpenAIJudge) else None
        self.prices = price_list()
        self.judged = self._relative(profile.judge)

    @property
    def columns(self) -> list[str]:
        """The names of what `of` returns. Hours are of a GPU, unless the model is planned for this machine's CPU."""
        on_cpu = self.shape is not None and not on_gpu(self.shape)
        return ["hours" if on_cpu else "GPU-hours", "disk GB", "judge requests", "price $"]

    def of(self, work: Work) -> list[float | int | None]:
        """Return the costs of work, in the order of `columns`."""
        return [self.hours(work), work.disk / GB, self.requests(work), self.usd(work)]

    def hours(self, work: Work) -> float | None:
        """Estimate the hours on one device, including those of a local judge."""
        if self.speed is None:
            return None
        read = work.read + work.judged * self.judged + sum(one.read * self._relative(one.judge) for one in work.others)
        return self.speed.seconds(train=work.train, read=read, write=work.write) / 3600

    def usd(self, work: Work) -> float | None:
        """Estimate the price of a paid judge in US dollars; 0 without one."""
        main = [] if self.paid is None else [JudgeWork(self.paid, len(METRICS) * work.verdicts, work.judged)]
        known = [self._price(one) for one in (*main, *_paid(work))]
        return None if None in known else sum((usd for usd in known if usd is not None), start=0.0)

    def requests(self, work: Work) -> int:
        """Count the requests to a paid judge; 0 without one."""
        main = 0 if self.paid is None else len(METRICS) * work.verdicts * self.paid.requests_a_score
        return main + sum(one.requests * one.judge.requests_a_score for one in _paid(work))

    def _price(self, work: JudgeWork) -> float | None:
        """Estimate the price of requests to one paid judge; None if its price is not known."""
        judge = work.judge
        price = judge.price or self.prices.models.get(judge.model)
        return None if price is None else price.of(
            (work.read * judge.requests_a_score, work.requests * (judge.samples or 1)), batch=judge.batch)

    def _relative(self, judge: JudgeSpec) -> float:
        """Return the cost of a token for a local judge, relative to one for the study's model; 0 for other judges."""
        judging = shape(judge.model) if isinstance(judge, LocalJudge) else None
        return judging.parameters / self.shape.parameters if judging and self.shape else 0.0


def _paid(work: Work) -> list[JudgeWork]:
    return [one for one in work.others if isinstance(one.judge, OpenAIJudge)]
