"""Tasks of lm-evaluation-harness: found by name, in the package or in a folder of task files, with their documents.

Importing the package takes a second of a processor, and indexing its 14,000 tasks six, so both happen only where tasks are
asked for, and the index is made only for a task that is not in the folder. The package sets environment variables, writes
progress bars, warns much and draws from global random numbers: `quiet_harness` keeps all that from the run.

A task file of a stranger is data, not a program. Python code in it (`!function`, a class, a metric that would be fetched from
the Hub) is refused unless code of models is trusted too, and its templates are rendered in Jinja's sandbox.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import io
import logging
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cwa_engine.base.errors import CwaError, DataError, InvalidInput, did_you_mean
from cwa_engine.hub.access import current_access, datasets_access

PACKAGE = "lm_eval"
# Tasks whose answers are compared by the likelihood that the model gives them: one forward pass for each answer.
SCORED_BY_LIKELIHOOD = ("multiple_choice", "loglikelihood")
_CODE_HINT = (
    "a task file is data: write it with templates alone; if you trust its code, the daemon's owner may set "
    "trust_remote_code = true in config.toml and restart it"
)


@dataclass(frozen=True)
class HarnessTask:
    """A task with the requests of its documents, the same for every model that answers them."""

    name: str
    task: Any  # lm_eval.api.task.Task
    version: str
    fewshot: int  # examples before each document
    documents: tuple[tuple[int, Any], ...]  # (number, document) in order
    available: int  # documents that there are
    requests: tuple[Any, ...]  # lm_eval.api.instance.Instance, in the order of documents


def harness_version() -> str:
    """The version of the package."""
    return importlib.metadata.version(PACKAGE)


@contextlib.contextmanager
def quiet_harness() -> Iterator[None]:
    """The package as it is wanted here: silent, with sandboxed templates, and everything global as before at the end.

    Raises InvalidInput where it is not installed.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise InvalidInput("--tasks needs lm-evaluation-harness", hint="pip install 'cwtool[eval]'")
    environment, states = dict(os.environ), (random.getstate(), np.random.get_state())
    logger = logging.getLogger(PACKAGE)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()), _sandboxed():
            yield
    finally:
        logger.setLevel(level)
        random.setstate(states[0])
        np.random.set_state(states[1])
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


@contextlib.contextmanager
def _sandboxed() -> Iterator[None]:
    """Templates of tasks cannot reach Python."""
    from jinja2 import BaseLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    before = utils.env
    sandbox = SandboxedEnvironment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
    sandbox.filters.update(before.filters)
    utils.env = sandbox
    try:
        yield
    finally:
        utils.env = before


@contextlib.contextmanager
def _paths_from(folder: Path | None) -> Iterator[None]:
    """Relative paths of data files begin at the folder of task files, for a daemon has another working folder."""
    import datasets

    before = datasets.load_dataset

    def there(path: Any) -> Any:
        if isinstance(path, Mapping):
            return {name: there(entry) for name, entry in path.items()}
        if isinstance(path, (list, tuple)):
            return [there(entry) for entry in path]
        return path if "://" in str(path) else str(Path(folder or "") / path)

    def load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
        for option in ("data_files", "data_dir"):
            if options.get(option):
                options[option] = there(options[option])
        return before(path, name, **options)

    if folder is None:
        yield
        return
    datasets.load_dataset = load_dataset
    try:
        yield
    finally:
        datasets.load_dataset = before


def load_tasks(
    names: Sequence[str], folder: Path | None, limit: int | None, seed: int, trust_code: bool = False
) -> list[HarnessTask]:
    """The tasks of these names, groups and tags spelled out, each with the requests of its first `limit` documents.

    Few-shot examples are drawn by `seed`. Raises InvalidInput for a name that there is not and for what cannot be compared
    document by document, DataError for documents that cannot be read.
    """
    with quiet_harness():
        if folder:
            _check_files(folder, trust_code)
        with _paths_from(folder):
            found = _found(names, folder)
        return [_with_requests(name, task, limit, seed) for name, task in found.items()]


def _found(names: Sequence[str], folder: Path | None) -> dict[str, Any]:
    """Task objects by name, in order."""
    manager = _manager_for(names, folder)
    for name in names:
        if name not in manager.task_index:
            known, package = manager.all_tasks, f"{PACKAGE} {harness_version()}"
            raise InvalidInput(
                f"there is no task '{name}' in {f'{folder} or in {package}' if folder else package}",
                hint=did_you_mean(name, known)
                or "`lm_eval ls tasks` lists those of the package; --task-path adds your own",
            )
    found: dict[str, Any] = {}
    for name in names:
        found |= _loaded(manager, name)
    return found


def _manager_for(names: Sequence[str], folder: Path | None) -> Any:
    """An index that has all these names: of the folder alone where that is enough, which spares reading 14,000 files."""
    from lm_eval.tasks import TaskManager

    if folder:
        own = TaskManager(include_path=str(folder), include_defaults=False)
        if all(name in own.task_index for name in names):
            return own
        return TaskManager(include_path=str(folder))
    return _usual_manager()


@functools.cache
def _usual_manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _loaded(manager: Any, name: str) -> dict[str, Any]:
    """The tasks that a name stands for, with their data."""
    import datasets

    access = current_access()
    try:
        with datasets_access(datasets, access):
            return dict(manager.load([name])["tasks"])
    except CwaError:
        raise
    except Exception as error:  # the package, its tasks and `datasets` raise errors of any type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        offline = " (this process may not use the network)" if access.datasets_offline else ""
        raise DataError(
            f"task {name} cannot be loaded: {reason}{offline}",
            hint="a task of your own with local json or csv files works offline, see docs/tasks.md; others need their data set "
            "in the cache, or HF_HUB_OFFLINE and HF_DATASETS_OFFLINE unset",
        ) from error


def _with_requests(name: str, task: Any, limit: int | None, seed: int) -> HarnessTask:
    kind = task.OUTPUT_TYPE
    if kind not in SCORED_BY_LIKELIHOOD:
        why = "its model writes answers, hundreds of passes for each document" if kind == "generate_until" else (
            "it measures perplexity, which every run does" if kind == "loglikelihood_rolling" else f"it is of type {kind}"
        )  # fmt: skip
        raise InvalidInput(
            f"task {name} cannot be measured here: {why}",
            hint=f"take tasks that compare the likelihood of answers ({' or '.join(SCORED_BY_LIKELIHOOD)})",
        )
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        raise InvalidInput(f"task {name} runs code or needs pictures", hint="take a task of texts")
    measures = task.aggregation()
    if not any(_is_mean(aggregation) for aggregation in measures.values()):
        raise InvalidInput(
            f"task {name} cannot be compared document by document: {', '.join(measures)} is no mean over documents",
            hint="take a task with acc, acc_norm or exact_match",
        )
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=seed)
    try:
        documents = tuple(task.doc_iterator(limit=limit))
        task.build_all_requests(limit=limit)
        available = len(task.eval_docs)
    except Exception as error:  # templates and code of tasks raise errors of any type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"the documents of task {name} make no requests: {reason}", hint="look at the templates of its task file"
        ) from error
    return HarnessTask(
        name=name,
        task=task,
        version=str((task.get_config("metadata") or {}).get("version", task.VERSION)),
        fewshot=int(task.get_config("num_fewshot")),
        documents=documents,
        available=available,
        requests=tuple(task.instances),
    )


def _is_mean(aggregation: Any) -> bool:
    """Whether a measure is the mean of its documents' scores, which is also what the package does without an aggregation."""
    return aggregation is None or getattr(aggregation, "__name__", "") == "mean"


def results_of(
    task: HarnessTask, answers: Sequence[tuple[float, bool]], lost: Set[int]
) -> tuple[list[dict[str, float | None] | None], tuple[str, ...]]:
    """(measure -> score of each document, measures that are no mean over documents), by the answers to all requests.

    A document that is `lost` has None in place of its scores, and so has a score that is no finite number. Raises DataError
    where the task fails at an answer.
    """
    found: list[dict[str, float | None] | None] = []
    others: set[str] = set()
    with quiet_harness():
        by_document: dict[int, list[Any]] = {}
        for request, answer in zip(task.requests, answers, strict=True):
            request.resps, request.filtered_resps = [answer], {}
            by_document.setdefault(request.doc_id, []).append(request)
        try:
            task.task.apply_filters()
            aggregations = task.task.aggregation()
            filters = list(task.requests[0].filtered_resps)
            for number, document in task.documents:
                if number in lost:
                    found.append(None)
                    continue
                scores: dict[str, float | None] = {}
                for name in filters:
                    answered = [request.filtered_resps[name] for request in by_document[number]]
                    for measure, value in task.task.process_results(document, answered).items():
                        label = measure if len(filters) == 1 else f"{measure},{name}"
                        if _is_mean(aggregations.get(measure)) and isinstance(value, (int, float, np.number, np.bool_)):
                            scores[label] = float(value) if math.isfinite(value) else None
                        else:
                            others.add(label)
                found.append(scores)
        except Exception as error:  # filters and code of tasks raise errors of any type
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(
                f"task {task.name} fails at an answer: {reason}",
                hint="look at its metrics and filters, or leave it out",
            ) from error
    return found, tuple(sorted(others))


class _Program(Exception):
    """What a task file would run."""


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML in which a function is named, not imported."""


def _named_function(loader: yaml.SafeLoader, node: yaml.Node) -> str:
    raise _Program(f"!function {node.value}")


_PlainLoader.add_constructor("!function", _named_function)


def _check_files(folder: Path, trust_code: bool) -> None:
    """Raises InvalidInput, naming the file, for task files that are none, and for such as run code that nobody trusts."""
    if not folder.is_dir():
        raise InvalidInput(f"--task-path {folder} is no folder", hint="give the folder with your task files, *.yaml")
    files, seen = sorted(folder.glob("**/*.yaml")), set[Path]()
    if not files:
        raise InvalidInput(
            f"--task-path {folder} has no task files", hint="a task file ends in .yaml, see docs/tasks.md"
        )
    while files:
        file = files.pop().resolve()
        if file in seen or trust_code:
            continue
        seen.add(file)
        try:
            config = yaml.load(file.read_text(encoding="utf-8"), Loader=_PlainLoader)
            if program := _program_in(config):
                raise _Program(program)
        except _Program as code:
            raise InvalidInput(f"task file {file} runs Python code: {code}", hint=_CODE_HINT) from code
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise InvalidInput(
                f"task file {file} cannot be read: {reason}", hint="it is YAML, see docs/tasks.md"
            ) from error
        included = config.get("include", []) if isinstance(config, Mapping) else []
        files += [file.parent / name for name in ([included] if isinstance(included, str) else included)]


def _program_in(config: Any) -> str:
    """What of a task file would be imported or fetched to be run; empty where nothing is."""
    from lm_eval.api import metrics as _registered  # noqa: F401 - fills the registry
    from lm_eval.api.registry import AGGREGATION_REGISTRY, METRIC_REGISTRY

    if not isinstance(config, Mapping):
        return ""
    if "class" in config:
        return f"class {config['class']}"
    for entry in config.get("metric_list") or ():
        if isinstance(entry, Mapping):
            name, aggregation = entry.get("metric"), entry.get("aggregation", "mean")
            if entry.get("hf_evaluate") or name not in METRIC_REGISTRY:
                return f"metric {name}, which the package would fetch from the Hub"
            if aggregation not in AGGREGATION_REGISTRY:
                return f"aggregation {aggregation}"
    return ""
