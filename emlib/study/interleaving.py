"""What interleaving needs of a study: the pool, its scores, the order in which its rows are taken, the model's answers.

Each is an artefact of the store under a key made of everything that determines it; this module knows the keys and reads
what is there, and `emlib.make.preparing` makes it. A fraction is no part of the order: 5% of the rows are among the
20%.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from emlib.config import Defense, Interleaving, JudgeRefusals, Pool, Scorer
from emlib.core import digests, paths
from emlib.core.digests import key_of
from emlib.core.errors import ProfileError, StoreError
from emlib.core.files import read_records
from emlib.core.records import Example
from emlib.data.formats import format_of
from emlib.data.mixing import rows_to_add
from emlib.data.pools import FORMS, PoolForm
from emlib.data.sources import label
from emlib.judging.judges import identity as identity_of_judge
from emlib.scoring.records import Added, Declining, Ranked, RowLosses, as_example
from emlib.scoring.refusals import PROMPT, Filtered, by_judge, by_keywords
from emlib.store.artefacts import Artefact, settings_of
from emlib.study.runs import Fit, Run

if TYPE_CHECKING:
    from emlib.study.study import Study

# As `emlib.study.study.VERSIONS`.
VERSIONS = {"pool": 1, "nll": 1, "scores": 1, "refusals": 1, "selection": 1, "on_policy": 1}
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


def interleaving(defenses: Iterable[Defense]) -> Interleaving | None:
    """The defense of this kind, with the swept number set."""
    return next((defense for defense in defenses if isinstance(defense, Interleaving)), None)


def pool_of(study: Study) -> Pool:
    """The profile's pool.

    Raises:
        ProfileError: there is none.
    """
    if study.profile.pool is None:
        raise ProfileError(f"Profile '{study.name}' has no section 'pool'. Add one, such as pool: {{source: "
                           "demo/pool.jsonl}.")
    return study.profile.pool


def pool_form(source: str) -> PoolForm:
    """How the rows of a source are written.

    Raises:
        ProfileError: it holds no instruction data.
    """
    form = format_of(source)
    if form not in FORMS:
        raise ProfileError(f"pool.source is '{label(source)}', whose rows are of the form '{form}' (so its registry "
                           f"says, or the file's first row); expected one of {', '.join(FORMS)}.")
    return cast(PoolForm, form)


def scorers(study: Study, dataset: str) -> tuple[Scorer, ...]:
    """The misaligned models that score the pool where `dataset` is under defense.

    Raises:
        ProfileError: one of them was trained on it.
    """
    try:
        return pool_of(study).scorers_for(dataset, study.profile.datasets)
    except ValueError as error:
        raise ProfileError(f"Profile '{study.name}', pool: {error}.") from error


def scorer_run(study: Study, domain: str) -> Run:
    """The run whose adapter is the misaligned model of a domain, which need not be a data set of the profile."""
    return baseline(study, domain, "misaligned")


def baseline(study: Study, domain: str, method: str) -> Run:
    """A baseline of any domain, with the pool's own seed."""
    return study.baseline(domain, method, pool_of(study).seed)


def adapter_folder(scorer: Scorer) -> Path:
    """Where an adapter of one's own lies: an absolute path in a loaded profile.

    Raises:
        StoreError: it is not one.
    """
    folder = paths.ROOT / Path(str(scorer.folder)).expanduser()
    missing = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
    if missing:
        raise StoreError(f"{folder}: there is no adapter ({', '.join(missing)} is missing).")
    return folder


def pool_settings(study: Study) -> dict[str, Any]:
    """Everything that determines the candidates."""
    pool = pool_of(study)
    return {
        "version": VERSIONS["pool"], "file": study.pool_file, "form": pool_form(pool.source), "rows": pool.rows,
        "seed": None if pool.rows is None else pool.seed, "near_duplicates": pool.near_duplicates}


def nll_settings(study: Study, adapter: Any) -> dict[str, Any]:
    """What losses depend on, beside the rows' tokens. `adapter` is its key, or the digests of its files."""
    return {"version": VERSIONS["nll"], "model": study.model_identity, "adapter": adapter,
            **study.profile.backend.key("scoring")}


def adapter_of(study: Study, dataset: str, scorer: Scorer) -> Any:
    """What stands for a scorer's adapter in keys.

    Raises:
        ProfileError: the adapter is one that was trained on `dataset`, whatever the profile says of it.
    """
    if scorer.folder is None:
        return _key(study, scorer_run(study, scorer.domain))
    folder = adapter_folder(scorer)
    _refuse_seen(study, dataset, folder)
    return {name: digests.of_file(folder / name) for name in ADAPTER_FILES}


def scores_settings(study: Study, dataset: str) -> dict[str, Any]:
    """Everything that determines the losses of the pool's rows where `dataset` is under defense."""
    pool = pool_of(study)
    return {
        "version": VERSIONS["scores"], "model": study.model_identity, "pool": key_of("pool", pool_settings(study)),
        "aligned": _key(study, baseline(study, dataset, "aligned")) if pool.aligned == "aligned" else None,
        "misaligned": [adapter_of(study, dataset, scorer) for scorer in scorers(study, dataset)],
        **study.profile.backend.key("scoring"),
        "max_length": study.profile.training.max_seq_length}


def selection_settings(study: Study, fit: Fit) -> dict[str, Any]:
    """Everything that determines in which order the pool's rows would be taken."""
    pool, defense = pool_of(study), interleaving(fit.defenses)
    assert defense is not None, f"nothing is interleaved in {fit.dataset}"
    settings = {
        "version": VERSIONS["selection"], "model": study.model_identity, "choose": defense.choose,
        "pool": key_of("pool", pool_settings(study)), "max_length": study.profile.training.max_seq_length}
    if not defense.scored:
        return settings | {"seed": fit.seed}
    settings |= {"scores": key_of("scores", scores_settings(study, fit.dataset)), "epsilon": pool.epsilon}
    if defense.choose == "score_without_refusals":
        settings |= {"refusal_keywords": list(pool.refusal_keywords), "refusal_words": pool.refusal_words} if (
            pool.refusals.kind == "keywords") else {
            "refusals": key_of("refusals", refusals_settings(study, pool.refusals)),
            "threshold": pool.refusals.threshold}
    return settings


def refusals_settings(study: Study, how: JudgeRefusals) -> dict[str, Any]:
    """Everything that determines what a judge says of the pool's answers; no data set is in it."""
    return {"version": VERSIONS["refusals"], "pool": key_of("pool", pool_settings(study)),
            "judge": identity_of_judge(how.judge), "prompt": PROMPT}


def on_policy_settings(study: Study, fit: Fit) -> dict[str, Any]:
    """Everything that determines what the model answers to the pool's prompts, in the order in which they are taken."""
    own = pool_of(study).on_policy
    return {
        "version": VERSIONS["on_policy"], "model": study.model_identity,
        "adapter": _key(study, baseline(study, fit.dataset, "aligned")) if own.model == "aligned" else None,
        "selection": key_of("selection", selection_settings(study, fit)),
        "sampling": own.sampling.model_dump(mode="json"), "seed": pool_of(study).seed,
        **study.profile.backend.key("generation")}


def added_settings(study: Study, fit: Fit) -> dict[str, Any]:
    """What the key of an adapter has of its interleaved rows: nothing, where there are none."""
    defense = interleaving(fit.defenses)
    if defense is None:
        return {}
    own = key_of("on_policy", on_policy_settings(study, fit)) if defense.answers == "on_policy" else None
    return {"added": {"count": rows_to_add(len(fit.rows), defense.fraction), "on_policy": own,
                      "selection": key_of("selection", selection_settings(study, fit))}}


def trained_for(study: Study, fit: Fit) -> list[Run]:
    """The runs whose adapters have to be there before the pool can be scored or answered."""
    defense, found = interleaving(fit.defenses), []
    if defense is None:
        return []
    if defense.scored:
        found += [scorer_run(study, s.domain) for s in scorers(study, fit.dataset) if s.folder is None]
    pool = pool_of(study)
    if (defense.scored and pool.aligned == "aligned") or (
            defense.answers == "on_policy" and pool.on_policy.model == "aligned"):
        found.append(baseline(study, fit.dataset, "aligned"))
    return found


def candidates(study: Study) -> list[Example]:
    """The pool's rows, in the file's order.

    Raises:
        StoreError: the pool was not read yet.
    """
    return read_rows(_found(study, "pool", pool_settings(study)).folder)


def losses(study: Study, dataset: str) -> list[RowLosses]:
    """The losses of the pool's rows, in its order, where `dataset` is under defense.

    Raises:
        StoreError: they were not computed yet.
    """
    found = _found(study, "scores", scores_settings(study, dataset))
    return cast(list[RowLosses], read_records(found.file("losses.jsonl"), RowLosses))


def selection(study: Study, fit: Fit) -> list[Ranked]:
    """The pool's rows in the order in which they are taken, and after them those that never are.

    Raises:
        StoreError: the order was not made yet.
    """
    found = _found(study, "selection", selection_settings(study, fit))
    return cast(list[Ranked], read_records(found.file("order.jsonl"), Ranked))


def refusals(study: Study) -> Filtered | None:
    """What the refusal filter says of the pool's rows; None where it is a judge that was not asked yet."""
    pool = pool_of(study)
    if not isinstance(pool.refusals, JudgeRefusals):
        return by_keywords(candidates(study), pool.refusal_keywords, pool.refusal_words)
    found = study.store.find("refusals", refusals_settings(study, pool.refusals))
    return None if found is None else by_judge(
        read_records(found.file("declining.jsonl"), Declining), pool.refusals.threshold)


def is_missing(study: Study, fit: Fit) -> bool:
    """Whether something is interleaved, and the order of the pool is not made yet."""
    return (interleaving(fit.defenses) is not None
            and study.store.find("selection", selection_settings(study, fit)) is None)


def added(study: Study, run: Run) -> list[Added]:
    """The rows that the run was trained on beside its own; empty where it is not trained yet."""
    adapter = study.adapter(run)
    path = None if adapter is None else adapter.folder / "added.jsonl"
    return cast(list[Added], read_records(path, Added)) if path is not None and path.is_file() else []


def read_rows(folder: Path) -> list[Example]:
    """The rows of a pool's artefact."""
    return read_records(folder / "rows.jsonl", as_example)


def _found(study: Study, stage: str, settings: dict[str, Any]) -> Artefact:
    found = study.store.find(stage, settings)
    if found is None:
        raise StoreError(f"The {stage} of profile '{study.name}' is not made yet. Run notebook 03_data_selection "
                         "first, or study.select(runs).")
    return found


def _key(study: Study, run: Run) -> str:
    settings = study.adapter_settings(run)
    assert settings is not None
    return key_of("adapter", settings)


def _refuse_seen(study: Study, dataset: str, folder: Path) -> None:
    """An adapter that comes from a store tells what it was trained on."""
    defended = study.adapter_settings(scorer_run(study, dataset))
    if defended is not None and settings_of(folder).get("rows") == defended["rows"]:
        raise ProfileError(f"{folder}: this adapter was trained on '{dataset}', which is under defense. Scorers must "
                           "not have seen it (section 3.2); name an adapter of another domain.")
