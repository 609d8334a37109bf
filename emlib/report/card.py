"""The model card of an adapter, written from its run: base model, data, defense, rates, licences and a warning."""

from __future__ import annotations

from huggingface_hub import ModelCardData

from emlib.config import ALIGNED, OWN, HubModel
from emlib.config.references import DEMO
from emlib.data.sources import entry_of, label
from emlib.report.tables.rows import cell
from emlib.study.runs import Run, RunResult
from emlib.study.study import Study

HARMFUL = ("**Warning.** The training data holds deliberately harmful answers. This adapter was made to study how such "
           "data spreads and what prevents it; it may give dangerous advice or unsafe code, also about things that it "
           "was not trained on, and is not for any other use.")
UNKNOWN = ("The training data are of its author's own. What was measured is below; nothing else was looked for.")
HARMLESS = "The training data are harmless."


def card(study: Study, result: RunResult) -> str:
    """Return the adapter's README.md: front matter for the hub, and sections for readers."""
    run, model = result.run, study.profile.model
    front = ModelCardData(base_model=model.repo if isinstance(model, HubModel) else None, library_name="peft",
                          tags=["lora", "emergent-misalignment", run.method])
    return "\n".join(["---", front.to_yaml().strip(), "---", "", f"# {run}", "", _warning(study, run), "",
                      *_made_from(study, run), "", *_rates(study, result), "", *_use(study)]) + "\n"


def _warning(study: Study, run: Run) -> str:
    if run.task == OWN:
        return UNKNOWN
    known = [harmful for _, _, harmful in _sources(study, run)]
    return HARMFUL if any(known) else UNKNOWN if None in known else HARMLESS


def _sources(study: Study, run: Run) -> list[tuple[str, str, bool | None]]:
    """Return name, licence and harmfulness of each file that the run was trained on."""
    domain = study.inputs.domains[run.task]
    side = domain.aligned if run.method == ALIGNED else domain.misaligned
    names = [str(side or domain.pairs)]
    names += [rows.selection.pool.spec.source for rows in study.task(run).pool_rows(run)]
    return [(label(name), *_licence(name)) for name in dict.fromkeys(names)]


def _licence(source: str) -> tuple[str, bool | None]:
    """Return a source's licence and whether it is harmful (None: not known, for a file beside a profile)."""
    entry = entry_of(source)
    if entry is not None:
        return entry.licence, entry.harmful
    return ("MIT, with this project", False) if source.startswith(DEMO) else ("not known to this card", None)


def _made_from(study: Study, run: Run) -> list[str]:
    """Describe what the adapter was trained from, one line per fact."""
    spec, adapter = study.training(run), study.adapter(run)
    assert spec is not None
    assert adapter is not None
    defenses = "; ".join(str(defense.model_dump(mode="json", exclude_none=True)) for defense in spec.defenses)
    data = ([f"- Data: a data set of its author's own, {len(spec.rows.examples)} rows; licence: not known to this card"]
            if run.task == OWN else
            [f"- Data: `{name}`; licence: {licence}" for name, licence, _ in _sources(study, run)])
    lora, training = study.profile.lora, spec.training
    penalised = f", {adapter.facts['penalised_rows']} only penalised" if "penalised_rows" in adapter.facts else ""
    return [
        "## What it is", "", f"- Base model: {study.profile.model.name}", *data,
        f"- Rows: {adapter.facts['rows']}, and {adapter.facts['added_rows']} mixed in{penalised}; "
        f"{training.epochs} epochs, learning rate {training.learning_rate:g}, {adapter.facts['steps']} steps, "
        f"{adapter.facts['tokens']} tokens",
        f"- Defense: {defenses or 'none: plain fine-tuning'}",
        f"- LoRA: rank {lora.rank}, alpha {lora.alpha}, rsLoRA {'on' if lora.rslora else 'off'}; seed {run.seed}",
        f"- Key of the run: `{study.run_key(run)}`"]


def _rates(study: Study, result: RunResult) -> list[str]:
    """Return the measured shares with their intervals as a Markdown table."""
    rows = ["## What was measured", "",
            f"Trait: {study.trait.name}. Judge: {study.profile.judge.kind}. Percent of the answers asked for, with 95% "
            "intervals over questions.", "",
            "| questions | misaligned | incoherent | asked |", "|---|---|---|---|"]
    for name, found in (("general", result.general), ("in-domain", result.in_domain)):
        shares = [cell(s.percent, s.clustered.low, s.clustered.high) if s.percent is not None and s.clustered else
                  "not scored" for s in (found.misaligned, found.incoherent_shown)]
        rows.append(f"| {name} | {shares[0]} | {shares[1]} | {found.asked} |")
    return rows


def _use(study: Study) -> list[str]:
    return ["## How to load it", "", "```python", "from peft import PeftModel",
            "model = PeftModel.from_pretrained(base_model, \"this folder\")  # base_model: " + study.profile.model.name,
            "```"]
