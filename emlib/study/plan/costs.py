"""What work takes in hours, disk, requests and money, under one profile."""

from __future__ import annotations

from emlib.config import LocalJudge, OpenAIJudge, Profile
from emlib.core.work import Work
from emlib.judging.money import price_list
from emlib.judging.rubrics import METRICS
from emlib.models.shape import shape
from emlib.study.plan.speed import on_gpu, speed

GB = 1e9


class Costs:
    """Turns work into hours, disk, requests and money. None: not known."""

    def __init__(self, profile: Profile) -> None:
        self.shape, self.speed = shape(profile.model), speed(profile.model, profile.evaluation.sampling)
        self.paid = profile.judge if isinstance(profile.judge, OpenAIJudge) else None
        self.prices = price_list()
        self.price = None if self.paid is None else self.prices.models.get(self.paid.model)
        # How a token that a judge in process reads compares with one that the study's model reads.
        judging = shape(profile.judge.model) if isinstance(profile.judge, LocalJudge) else None
        self.judged = judging.parameters / self.shape.parameters if judging and self.shape else 0.0

    @property
    def columns(self) -> list[str]:
        """What `of` gives; hours are a GPU's, unless the model is planned for this machine's processor."""
        on_cpu = self.shape is not None and not on_gpu(self.shape)
        return ["hours" if on_cpu else "GPU-hours", "disk GB", "judge requests", "price $"]

    def of(self, work: Work) -> list[float | int | None]:
        """In the order of `columns`."""
        return [self.hours(work), work.disk / GB, self.requests(work), self.usd(work)]

    def hours(self, work: Work) -> float | None:
        """Of one device, the judge's own where it is a model in process."""
        if self.speed is None:
            return None
        read = work.read + work.judged * self.judged
        return self.speed.seconds(train=work.train, read=read, write=work.write) / 3600

    def usd(self, work: Work) -> float | None:
        """Of a paid judge."""
        if self.paid is None:
            return 0.0
        written = len(METRICS) * work.verdicts * (self.paid.samples or 1)
        return None if self.price is None else self.price.of((work.judged, written), batch=self.paid.batch)

    def requests(self, work: Work) -> int:
        """Sent to a paid judge."""
        return 0 if self.paid is None else len(METRICS) * work.verdicts
