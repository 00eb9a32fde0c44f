"""A task is one YAML under data/: its labels in id order, where its rows come from and how they are split."""

import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from fintune.errors import UserError


@dataclass(frozen=True)
class DataFile:
    """One file of rows.

    Attributes:
        path: relative to the mirror (`FINTUNE_DATA`) in a task with a `hub`, else to the task's YAML.
        hub_path: path in the Hub repository; `archive.zip::member` for a file inside a zip.
        sha256: hash of the file's bytes; other bytes are refused.
        rows: number of rows it must hold.
    """

    path: str
    hub_path: str | None = None
    sha256: str | None = None
    rows: int | None = None
    encoding: str = "utf-8-sig"


@dataclass(frozen=True)
class SoftLabels:
    """A file of texts with the probability of each label, as `fintune predict` writes it.

    Attributes:
        path: relative to the YAML that states it.
        prefix: what `predict --prefix` put before its columns.
    """

    path: str
    prefix: str = ""


@dataclass(frozen=True)
class Task:
    """What a task's YAML says.

    Attributes:
        labels: value in the data file -> name that the model answers with, in the order of the label ids.
        files: split -> file. `all` is split into train, validation and test; a missing validation is split off train.
        template: the user turn, a Jinja file.
        columns: columns of the files that a model reads beside the text; the template uses each by its name.
        sample: invented rows that stand in where neither mirror nor Hub is there, for models that need no download.
        split: seed, and shares of what is split off.
        paper: accuracy in Table 4 of arXiv 2512.00630, by model.
        train_share: share of the training rows that is trained on: of each class, chosen by hash, so that a
            smaller share lies within a larger one. Validation and test stay whole.
        exclude: file whose rows, by `text`, `columns` and `label`, are left out of training.
        max_leakage: share of test rows that may be in training or validation too before training is refused.
        soft_labels: where the training rows come from in place of `files`; validation and test stay what they are.
        class_weights: "balanced" weighs a row's loss by the rarity of its class; unset, every row counts the same.
        log_texts: whether texts of rows may be sent to Weights & Biases.
    """

    task: str
    labels: dict[str, str]
    files: dict[str, DataFile]
    template: str
    hub: str | None = None
    revision: str | None = None
    license: str = "not stated"
    sample: dict[str, DataFile] = field(default_factory=dict)
    text_column: str = "text"
    label_column: str = "label"
    columns: list[str] = field(default_factory=list)
    split: dict[str, float] = field(default_factory=dict)
    paper: dict[str, float] = field(default_factory=dict)
    train_share: float = 1.0
    exclude: str | None = None
    max_leakage: float = 0.05
    soft_labels: SoftLabels | None = None
    class_weights: str | None = None
    log_texts: bool = False

    @property
    def names(self) -> list[str]:
        """The label names in id order."""
        return list(self.labels.values())

    @property
    def label_ids(self) -> dict[str, int]:
        """Label id by name and by what the file holds, which wins over a name."""
        return {name: label for labels in (self.names, self.labels) for label, name in enumerate(labels)}


TASK_KEYS = [f.name for f in fields(Task)]
RESERVED = ("text", "texts", "label", "labels")  # what a template, a request or a labelled file calls something else
RESERVED += ("split", "file", "line", "prediction", "clean")  # and what lists of predictions or suspects do
RESERVED += ("probability", "likely", "likely_probability", "why")
SPLIT_DEFAULTS = {"seed": 42, "validation": 0.1, "test": 0.1}


def absolute_paths(layer: dict, folder: Path) -> dict:
    """A layer's file names as seen from anywhere: templates, `soft_labels`, `sample` and, without a `hub`, `files`."""
    layer = dict(layer)
    if "task" in layer:
        layer.setdefault("template", f"../templates/{layer['task']}.jinja")
    for key in ("template", "chat_template_path", "exclude"):
        if layer.get(key):
            layer[key] = str((folder / str(layer[key])).resolve())
    for key in ("sample",) if layer.get("hub") else ("sample", "files"):
        if isinstance(layer.get(key), dict):
            layer[key] = {split: _with_path(spec, folder) for split, spec in layer[key].items()}
    if "soft_labels" in layer:
        layer["soft_labels"] = _with_path(layer["soft_labels"], folder)
    return layer


def _with_path(spec: object, folder: Path) -> object:
    if isinstance(spec, str):
        return {"path": str((folder / spec).resolve())}
    if isinstance(spec, dict) and isinstance(spec.get("path"), str):
        return {**spec, "path": str((folder / spec["path"]).resolve())}
    return spec


def make_task(values: dict, where: str) -> Task:
    """Build a `Task` from the merged keys of its YAML; `where` names the file in messages.

    Raises:
        UserError: a key is missing or of the wrong kind, or two labels share a name.
    """
    values = dict(values)
    for key in ("task", "labels", "files"):
        if not values.get(key):
            raise UserError(f"{where}: `{key}` is missing; a task needs task, labels and files (see data/README.md)")
    values["task"], labels = str(values["task"]), values["labels"]
    if not re.fullmatch(r"\w[\w .-]{0,99}", values["task"]):  # it names the run's folder
        raise UserError(
            f"{where}: `task` is {values['task']!r}; it takes up to 100 letters, digits, spaces and _ - . and begins "
            "with a letter or digit"
        )
    if isinstance(labels, list):
        labels = {label: label for label in labels}
    if not isinstance(labels, dict) or len(labels) < 2:
        raise UserError(
            f"{where}: `labels` is {labels!r}; list at least two names, or map values in the file to names"
        )
    values["labels"] = labels = {str(value): str(name).strip() for value, name in labels.items()}
    if len(set(labels.values())) < len(labels) or "" in labels.values():
        raise UserError(f"{where}: `labels` holds an empty or repeated name: {list(labels.values())}")
    for value, name in labels.items():  # negative: Positive
        if value == name:
            continue
        other = next((known for known in labels if known.casefold() == str(name).strip().casefold()), value)
        if other != value and value.casefold() in {str(known).strip().casefold() for known in labels.values()}:
            raise UserError(
                f"{where}: `labels` maps {value!r} to {name!r}, which is what the file calls another label; swap the "
                "names back, or rename them"
            )
    values["columns"] = columns = values.get("columns") or []
    check_column_names(columns, where, values.get("text_column", "text"), values.get("label_column", "label"))
    for key in ("files", "sample"):
        if not isinstance(values.get(key, {}), dict):
            raise UserError(
                f"{where}: `{key}` is {values[key]!r}; map a split (all, train, validation, test) to a file"
            )
        values[key] = {
            split: _data_file(spec, f"{where}: `{key}.{split}`") for split, spec in values.get(key, {}).items()
        }
    for splits in [set(values["files"])] + [set(values["sample"])] * bool(values["sample"]):
        if splits - {"all", "train", "validation", "test"} or len(splits & {"all", "train"}) != 1:
            raise UserError(f"{where}: `files` names {sorted(splits)}; use all, or train with validation and test")
    split = values.get("split") or {}
    if not isinstance(split, dict) or set(split) - set(SPLIT_DEFAULTS):
        raise UserError(f"{where}: `split` is {split!r}; its known keys are {', '.join(SPLIT_DEFAULTS)}")
    values["split"] = split = {**SPLIT_DEFAULTS, **split}
    shares = [split["validation"], split["test"]]
    if not all(isinstance(share, int | float) and 0 < share < 1 for share in shares) or sum(shares) >= 1:
        raise UserError(
            f"{where}: `split` takes {shares[0]!r} and {shares[1]!r}; give two shares whose sum is below 1"
        )
    if not isinstance(values.get("log_texts", False), bool):
        raise UserError(f"{where}: `log_texts` is {values['log_texts']!r}; it takes true or false, without quotes")
    leakage = values.get("max_leakage", 0.05)
    if isinstance(leakage, bool) or not isinstance(leakage, int | float) or not 0 <= leakage <= 1:
        raise UserError(f"{where}: `max_leakage` is {leakage!r}; it takes a share of the test rows, from 0 to 1")
    share = values.get("train_share", 1.0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise UserError(f"{where}: `train_share` is {share!r}; it takes a number above 0 and up to 1")
    if values.get("class_weights") not in (None, "balanced"):
        raise UserError(f"{where}: `class_weights` is {values['class_weights']!r}; it takes balanced, or leave it out")
    if values.get("soft_labels") is not None:
        values["soft_labels"] = _soft_labels(values["soft_labels"], where)
        if values.get("class_weights"):
            raise UserError(f"{where}: `class_weights` weighs hard labels; take it out, or `soft_labels`")
        if values.get("exclude"):
            raise UserError(f"{where}: `exclude` names rows by their label; take it out, or `soft_labels`")
    if values.get("hub") and not values.get("revision"):
        raise UserError(f"{where}: `hub: {values['hub']}` has no `revision`; pin the commit it was read at")
    return Task(**values)


def check_column_names(columns: object, where: str, *others: str) -> None:
    """Refuse `columns` that a template cannot name.

    Args:
        others: the columns of the text and of the label.

    Raises:
        UserError: it is no list of different names, or a name is taken.
    """
    import jinja2.meta

    if not isinstance(columns, list) or len({str(name) for name in columns}) < len(columns):
        raise UserError(
            f"{where}: `columns` is {columns!r}; list different columns of the files, as in [ticker, source]"
        )
    environment = jinja2.Environment()
    taken = (*RESERVED, *others)
    for name in columns:
        try:
            variables = jinja2.meta.find_undeclared_variables(environment.parse(f"{{{{ {name} }}}}"))
        except jinja2.TemplateSyntaxError:
            variables = set()
        if not isinstance(name, str) or variables != {name} or name in taken:
            why = "which is taken" if name in taken else "which no template can name"
            raise UserError(
                f"{where}: `columns` lists {name!r}, {why}; give it another name there, such as ticker "
                "(`fintune prepare --columns ticker=COLUMN` does)"
            )


def _data_file(spec: object, where: str) -> DataFile:
    known = [f.name for f in fields(DataFile)]
    if isinstance(spec, str):
        spec = {"path": spec}
    if not isinstance(spec, dict) or "path" not in spec or set(spec) - set(known):
        raise UserError(f"{where} is {spec!r}; give a path, or a mapping with path and any of {', '.join(known[1:])}")
    return DataFile(**spec)


def _soft_labels(spec: object, where: str) -> SoftLabels:
    sound = isinstance(spec, dict) and "path" in spec and set(spec) <= {"path", "prefix"}
    if not sound or not all(isinstance(value, str) for value in spec.values()):
        raise UserError(
            f"{where}: `soft_labels` is {spec!r}; give the path of a file that `fintune predict` wrote, or a mapping "
            "with path and, if predict had a --prefix, prefix"
        )
    return SoftLabels(**spec)


def task_yaml(task: Task) -> dict:
    """The keys of a task as a YAML holds them, without the unset ones."""
    values = {key: value for key, value in asdict(task).items() if value not in (None, {}, [])}
    for key in ("train_share", "max_leakage"):  # at their defaults they would tell runs apart that are alike
        if values[key] == Task.__dataclass_fields__[key].default:
            del values[key]
    for key in ("files", "sample"):
        if key in values:
            values[key] = {
                split: {k: v for k, v in spec.items() if v is not None} for split, spec in values[key].items()
            }
    return values
