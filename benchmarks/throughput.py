"""How fast a study's model learns and answers, from the runs that are in the store: a row of results/throughput.json.

    python benchmarks/throughput.py demo "one core of an AMD EPYC, float32"

Plans are made from these rows (`emlib/study/plan/speed.py`). Nothing is computed here: seconds and tokens are those
that the runs noted. Only adapters and answers of the profile's model count, under whatever profile they were made, and
of answers only those that were drawn in one session.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys

from emlib.config.shapes import shape
from emlib.core import paths
from emlib.core.errors import EmlibError, StoreError
from emlib.core.files import write_text
from emlib.study.plan.speed import Measured, answered, on_gpu, table, trained
from emlib.study.study import open_study

PATH = paths.ROOT / "benchmarks" / "results" / "throughput.json"


def measured(profile: str, what: str) -> Measured:
    """The row of a profile's model on this machine.

    Raises:
        StoreError: nothing was trained or asked yet, or the model's size is not known.
    """
    study = open_study(profile)
    spec, size = study.profile.model, shape(study.profile.model)
    learnt, drawn = trained(study.store, spec), answered(study.store, spec)
    if size is None or not (learnt.seconds and drawn.seconds):
        raise StoreError(f"{spec.name}: needs its size in params/models.yaml, and at least one trained adapter and one "
                         f"set of answers in {study.store.root}; there are {learnt.count} and {drawn.count}.")
    return Measured(
        model=spec.name.rpartition("/")[2], parameters=size.parameters, device="gpu" if on_gpu(size) else "cpu",
        what=what, date=str(datetime.datetime.now(datetime.UTC).date()),
        source=f"{learnt.count} adapters, {drawn.count} sets of answers",
        train=round(learnt.tokens / learnt.seconds, 1), write=round(drawn.tokens / drawn.seconds, 1))


def main() -> int:
    """Measure and put the row into the table, in place of the one of the same model and kind of device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", help="a profile whose runs are in the store")
    parser.add_argument("what", help="the device in words, as it shall stand in plans")
    asked = parser.parse_args()
    try:
        row = measured(asked.profile, asked.what)
    except EmlibError as error:
        sys.exit(str(error))
    others = [each for each in table(PATH) if (each.model, each.device) != (row.model, row.device)]
    rows = [each.model_dump(mode="json", exclude_none=True) for each in (*others, row)]
    write_text(PATH, json.dumps({"benchmark": "throughput", "rows": rows}, indent=1) + "\n")
    print(row.model_dump_json(indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
