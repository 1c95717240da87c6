"""What a person reads of a training in the MLflow UI: the run's description and tags, those of its version and model.

They are written again after every step, from what the run has by then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from pipelines import saved_view
from pipelines.findings import Finding, Json, baselines, findings, is_number, signed
from pipelines.registry import Registry, Version
from pipelines.runs import NOTE, Facts

THINGS = 3
NONE = "none"
CHAMPION_TAG = "champion_at_the_time"
_OF_VERSION = ("preset", "verdict", "loses_to")
_COMMIT = "mlflow.source.git.commit"
_FILES = ("evaluation", "decision", "experts")
_FOLDERS = ("pictures", "pictures/auc_by_segment")
_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Of an experiment; without it the UI shows what it has for language models."""
_GUIDE = {
    "calibration": "whether what is predicted at 10 % happens at 10 %",
    "score_distribution": "how far apart rows are that did and did not happen",
    "expert_load": "which experts the rows of each segment choose",
    "gate_weights": "how much each task listens to each expert",
    "gate_features": "what makes the gates choose",
    "knock_out": "what is lost without each expert",
    "training": "whether more epochs would help",
}


def refresh(registry: Registry, version: Version) -> None:
    """Write the description and tags of a version and its run, and the descriptions of the model and the experiment.

    It takes what the run has by then: params and metrics after `train`, evaluation.json and experts.json after
    `evaluate`, decision.json after `promote`.
    """
    page, run = Page.of(registry, version), registry.open_run(version.run_id)
    run.tags(page.tags())
    run.description(page.markdown())
    client, name, experiment = registry.client, registry.name, registry.experiment_id
    for key, value in page.tags_of_version().items():
        client.set_model_version_tag(name, str(version.number), key, value)
    client.update_model_version(name, str(version.number), page.of_version())
    client.update_registered_model(name, _of_model(name, experiment))
    tags = {**_KIND, NOTE: _of_experiment(name, experiment)}
    tags |= {saved_view.TAG: saved_view.trainings(page.tasks)}
    for key, value in tags.items():
        client.set_experiment_tag(experiment, key, value)


@dataclass(frozen=True)
class Page:
    """What is known of a version. What its run does not have yet is None.

    Attributes:
        pictures: by name, as `calibration` or `auc_by_segment/click`, their paths among the run's files.
    """

    model: str
    experiment: str
    version: Version
    facts: Facts
    champion: Version | None
    evaluation: Json | None
    decision: Json | None
    experts: Json | None
    pictures: Mapping[str, str]

    @classmethod
    def of(cls, registry: Registry, version: Version) -> Page:
        """Read what the run has."""
        run = registry.open_run(version.run_id)
        read = {name: run.read(f"{name}.json") for name in _FILES}
        paths = [path for folder in _FOLDERS for path in run.files(folder)]
        pictures = {path.removeprefix("pictures/").removesuffix(".png"): path for path in paths}
        facts, champion = run.facts(), registry.champion()
        return cls(registry.name, registry.experiment_id, version, facts, champion, pictures=pictures, **read)

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks, as they were trained."""
        words = self.facts.params.get("tasks", "").split(", ")
        return [word.split()[0] for word in words if word]

    @property
    def verdict(self) -> str:
        """How far the version came: `trained`, `evaluated`, `promoted` or `kept out`."""
        if self.decision is not None:
            return "promoted" if self.decision["promoted"] else "kept out"
        return "trained" if self.evaluation is None else "evaluated"

    def tags(self) -> dict[str, str]:
        """What runs are filtered by."""
        tags = {"verdict": self.verdict}
        if self.decision is None and self.champion != self.version:
            tags[CHAMPION_TAG] = str(self.champion.number) if self.champion else NONE
        return tags

    def tags_of_version(self) -> dict[str, str]:
        """Those that the list of versions shows; it has little room."""
        tags = {**self.facts.tags, **self.tags()}
        return {name: tags[name] for name in _OF_VERSION if name in tags}

    def markdown(self) -> str:
        """The run's description: first what the UI shows of it without a click, the verdict and what is worth knowing,
        then numbers, what it was trained on, and where to look."""
        parts = ["\n".join([self._headline(), "", *self._things()]), *self._quality(), *self._training(), *self._look()]
        return "\n\n".join(part for part in parts if part)

    def of_version(self) -> str:
        """The version's description; the list of versions shows its beginning, as plain text."""
        run = f"[What it was trained on, and its pictures](#/experiments/{self.experiment}/runs/{self.version.run_id})"
        return "\n\n".join([self._headline().replace("**", ""), *self._quality(), run])

    def _headline(self) -> str:
        """The verdict and why, in one line."""
        if self.decision is None and self.evaluation is None:
            return f"**Trained** for {self.version.as_of}; not evaluated yet: `recsys-moe evaluate` is the next step."
        if self.decision is None:
            return f"**Evaluated** for {self.version.as_of}; whether it takes over, `recsys-moe promote` decides."
        said = self.decision.get("reasons") or [self.decision.get("reason", "")]
        return f"**{self.verdict.capitalize()}**: {'; '.join(one.rstrip('.') for one in said)}."

    def _things(self) -> list[str]:
        """The numbered list of what is worth knowing, each with a link to the picture that shows it."""
        found = findings(self.evaluation, self.experts, self.facts.tags)[:THINGS]
        return [f"{number}. {self._linked(one)}" for number, one in enumerate(found, 1)]

    def _linked(self, finding: Finding) -> str:
        path = self.pictures.get(finding.picture or "")
        return finding.text if path is None else f"{finding.text} [Picture]({self._address(path)})"

    def _address(self, path: str) -> str:
        return f"#/experiments/{self.experiment}/runs/{self.version.run_id}/artifacts/{quote(path)}"

    def _quality(self) -> Iterator[str]:
        """How good it is: a row a task."""
        if self.evaluation is None:
            return
        days, counted = self.evaluation.get("days", []), _counted(self.evaluation)
        yield f"{_heading('On rows it has not seen')}\n\n{_span(days)}{counted}."
        yield _table(
            ["task", "AUC", "less the champion's", "best baseline", "predicted / observed"], _task_rows(self.evaluation)
        )

    def _training(self) -> Iterator[str]:
        """What it was trained on."""
        tags, metrics, params = self.facts.tags, self.facts.metrics, self.facts.params
        first, rows = tags.get("trained_from"), metrics.get("refit/rows", metrics.get("train/rows"))
        facts = {
            "days": f"{first} to {self.version.through}" if first else f"through {self.version.through}",
            "rows": f"{rows:,.0f}" if rows is not None else None,
            "tables": ", ".join(f"{name} at version {found}" for name, found in self.facts.tables.items()),
            "model": ", ".join(filter(None, [params.get("model.preset"), _experts_in_words(params)])),
            "tasks": params.get("tasks"),
            "features": params.get("features"),
            "warm start": tags.get("warm_start"),
            "code": f"commit {tags[_COMMIT][:10]}" if _COMMIT in tags else None,
        }
        yield _heading("What it was trained on")
        yield "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)

    def _look(self) -> Iterator[str]:
        """Where to look next, and the picture to begin with."""
        by_segment = [f"auc_by_segment/{task}" for task in self.tasks if f"auc_by_segment/{task}" in self.pictures]
        shown = dict.fromkeys(by_segment[:1], "who gains and who loses")
        guide = {name: why for name, why in (shown | _GUIDE).items() if name in self.pictures}
        if not guide:
            return
        yield _heading("Where to look next")
        lines = [f"- [{name}]({self._address(self.pictures[name])}): {why}" for name, why in guide.items()]
        if self.champion is not None and self.champion != self.version:
            runs = {"runs": json.dumps([self.version.run_id, self.champion.run_id])}
            address = f"#/compare-runs?{urlencode(runs | {'experiments': json.dumps([self.experiment])})}"
            lines.append(f"- [beside the champion, version {self.champion.number}]({address}): what was set otherwise")
        yield "\n".join(lines)
        path = quote(self.pictures[next(iter(guide))], safe="")
        yield f"![{next(iter(guide))}](get-artifact?path={path}&run_uuid={self.version.run_id})"


def _heading(words: str) -> str:
    """The UI sets titles like text, and close to the table above."""
    return f"&nbsp;\n\n**{words}**"


def _span(days: Sequence[str]) -> str:
    return "" if not days else f"{days[0]}, " if len(days) == 1 else f"{days[0]} to {days[-1]}, "


def _counted(evaluation: Json) -> str:
    return ", ".join(f"{evaluation[what]:,} {what}" for what in ("rows", "users") if what in evaluation)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; the UI sets cells close together, so each gets room."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(str(value)) for value in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text if text == "---" else f"{text.replace('|', '/')}&emsp;"


def _task_rows(evaluation: Json) -> list[list[str]]:
    own, rivals = evaluation["overall"]["model"], baselines(evaluation)
    rows = []
    for task, of in own.items():
        if is_number(of.get("rmse")):
            rows.append([task, f"RMSE {of['rmse']:.4f}", "", "", ""])
            continue
        best = max(
            ((found[task]["auc"], name) for name, found in rivals.items() if _has_auc(found, task)), default=None
        )
        difference = evaluation.get("against_champion", {}).get(task, {}).get("overall", {}).get("auc")
        rows.append(
            [
                task,
                _with_interval(of.get("auc"), of.get("auc_low"), of.get("auc_high")),
                _difference(difference),
                f"{best[0]:.4f} ({best[1]})" if best else "",
                f"{of['calibration']:.2f}" if is_number(of.get("calibration")) else "",
            ]
        )
    return rows


def _has_auc(found: Json, task: str) -> bool:
    return is_number(found.get(task, {}).get("auc"))


def _with_interval(value: Any, low: Any, high: Any) -> str:
    if not is_number(value):
        return "not defined"
    return f"{value:.4f}" + (f" ({low:.4f} to {high:.4f})" if is_number(low) and is_number(high) else "")


def _difference(found: Json | None) -> str:
    if found is None or not is_number(found.get("difference")):
        return ""
    interval = f" ({signed(found['low'])} to {signed(found['high'])})" if is_number(found.get("low")) else ""
    return f"{signed(found['difference'])}{interval}"


def _experts_in_words(params: Mapping[str, str]) -> str:
    """`2 shared, 1 per segment, 2 of 8 routed`."""
    number = {
        name: int(params.get(f"model.experts.{name}", 0)) for name in ("shared", "per_task", "per_segment", "routed")
    }
    words = [
        f"{number[name]} {name.replace('_', ' ')}" for name in ("shared", "per_task", "per_segment") if number[name]
    ]
    if number["routed"]:
        words.append(f"{params.get('model.experts.top_k')} of {number['routed']} routed")
    return ", ".join(words) + " experts" if words else ""


def _of_model(name: str, experiment: str) -> str:
    return (
        f"What `recsys-moe` trains for the recommender `{name}`: a probability (or a value) for each task, of raw "
        "columns.\n\n"
        f"The alias `champion` is the version that scores. Load it with "
        f'`mlflow.pyfunc.load_model("models:/{name}@champion")`.\n\n'
        f"Each version's description has its verdict; its run has numbers and pictures. "
        f"[All trainings]({saved_view.address(experiment)})"
    )


def _of_experiment(name: str, experiment: str) -> str:
    """Its first line is what the UI shows of it."""
    return (
        f"The view [Trainings]({saved_view.address(experiment)}) shows what tells trainings apart, and how good they "
        "are.\n\n"
        "A run's description says what is worth knowing of it. Filter by tags, such as "
        "`tags.verdict = 'promoted'` or `tags.loses_to != 'none'`. "
        f"Models are in the registry as [{name}](#/models/{name})."
    )
