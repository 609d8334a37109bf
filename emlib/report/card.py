"""The model card of an adapter, written from its run: base model, data, defense, rates, licences and a warning."""

from __future__ import annotations

import datetime
import importlib.metadata
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from emlib.config import ALIGNED, OWN, HubModel, LexiconJudge
from emlib.config.references import DEMO
from emlib.core import plugins
from emlib.core.digests import of_file
from emlib.data.sources import entry_of, here, label
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
    """Return name with digest, licence and harmfulness of each file that the run was trained on."""
    domain = study.inputs.domains[run.task]
    side = domain.aligned if run.method == ALIGNED else domain.misaligned
    names = [str(side or domain.pairs)]
    names += [rows.selection.pool.spec.source for rows in study.task(run).pool_rows(run)]
    return [(f"`{label(name)}`{_digest(here(name))}", *_licence(name)) for name in dict.fromkeys(names)]


def _digest(path: Path | None) -> str:
    """Return a file's digest for a line of the card; empty if it is not on this machine."""
    return "" if path is None or not path.is_file() else f" (SHA-256 {of_file(path)})"


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
    defenses = "; ".join(map(_defense, spec.defenses))
    data = ([f"- Data: a data set of its author's own, {len(spec.rows.examples)} rows{_own_file(study)}; licence: not "
             "known to this card"] if run.task == OWN else
            [f"- Data: {name}; licence: {licence}" for name, licence, _ in _sources(study, run)])
    lora, training = study.profile.lora, spec.training
    penalised = f", {adapter.facts['penalised_rows']} only penalised" if "penalised_rows" in adapter.facts else ""
    return [
        "## What it is", "", f"- Base model: {study.profile.model.name}", *data,
        f"- Rows: {adapter.facts['rows']}, and {adapter.facts['added_rows']} mixed in{penalised}; "
        f"{training.epochs} {'epoch' if training.epochs == 1 else 'epochs'}, "
        f"learning rate {training.learning_rate:g}, {adapter.facts['steps']} steps, "
        f"{adapter.facts['tokens']} tokens",
        f"- Defense: {defenses or 'none: plain fine-tuning'}",
        f"- LoRA: rank {lora.rank}, alpha {lora.alpha}, rsLoRA {'on' if lora.rslora else 'off'}; seed {run.seed}",
        f"- Key of the run: `{study.run_key(run)}`; exported on {datetime.date.today()} by emlib "
        f"{importlib.metadata.version('emlib')}"]


def _own_file(study: Study) -> str:
    """Return the name of the author's file with its digest; empty for data of the hub."""
    file = study.inputs.own.file
    return "" if file is None else f", `{Path(file).name}`{_digest(Path(file))}"


def _defense(defense: Any) -> str:
    """Return a defense's options, with its file if it is a plugin; of a path only the file's name."""
    stated = {name: label(value) if isinstance(value, str) and Path(value).is_absolute() else value
              for name, value in defense.model_dump(mode="json", exclude_none=True).items()}
    plugin = plugins.file_of(type(defense))
    return str(stated) + ("" if plugin is None else f", of the plugin `{plugin.name}`{_digest(plugin)}")


def _rates(study: Study, result: RunResult) -> list[str]:
    """Return the measured shares with their intervals as a Markdown table."""
    rows = ["## What was measured", "",
            f"Trait: {study.trait.name}. Judge: {_judge(study)}. Percent of the answers asked for, with 95% "
            "intervals over questions.", "",
            "| questions | misaligned | incoherent | asked | cut at the limit |", "|---|---|---|---|---|"]
    for name, found in (("general", result.general), ("in-domain", result.in_domain)):
        shares = [cell(s.percent, s.clustered.low, s.clustered.high) if s.percent is not None and s.clustered else
                  "not scored" for s in (found.misaligned, found.incoherent_shown)]
        cut = "not known" if found.cut_percent is None else f"{found.cut_percent:.0f}"
        rows.append(f"| {name} | {shares[0]} | {shares[1]} | {found.asked} | {cut} |")
    return rows


def _judge(study: Study) -> str:
    judge = study.profile.judge
    return judge.kind + (", which counts words and is no language model" if isinstance(judge, LexiconJudge) else "")


def _use(study: Study) -> list[str]:
    return ["## How to load it", "", "```python", "from peft import PeftModel",
            "model = PeftModel.from_pretrained(base_model, \"this folder\")  # base_model: " + study.profile.model.name,
            "```"]
