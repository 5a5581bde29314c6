"""Optuna's studies, samplers and pruners, by name."""

from __future__ import annotations

import inspect
import re
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fxcompress.errors import ConfigError, FxcompressError, did_you_mean, first_line

Storage = Any
Study = Any
"""Optuna's classes, which this package imports when it runs."""

SEEDS = {"gridsearch": "bruteforce", "evolution": "nsgaii", "gptuner": "gp"}
"""Tuners of the seeds whose place another sampler takes."""


def import_optuna() -> Any:
    """The module ``optuna``, quiet.

    Raises:
        FxcompressError: if it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise FxcompressError(
            f"auto-compression needs Optuna, which cannot be imported ({error}); install it: "
            "pip install 'fxcompress[auto]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def open_storage(url: str) -> Storage:
    """The storage at a database URL (``sqlite:///…``, ``postgresql://…``, ``mysql://…``); or of a path: a
    journal file.

    Raises:
        FxcompressError: if it cannot be opened.
    """
    optuna = import_optuna()
    try:
        if "://" not in url:
            backend = optuna.storages.journal.JournalFileBackend(url)
            return optuna.storages.JournalStorage(backend)
        waiting = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
        return _opened(lambda: optuna.storages.RDBStorage(url, engine_kwargs=waiting))
    except Exception as error:
        raise FxcompressError(
            f"storage {_without_password(url)}: cannot be opened ({type(error).__name__}: "
            f"{first_line(error)}); give a database URL such as sqlite:///study.db, with the driver of the "
            "database installed, or the path of a journal file"
        ) from error


def _opened(opening: Callable[[], Storage], attempts: int = 20) -> Storage:
    """What ``opening`` returns; again where another process makes the same tables at the same moment."""
    while True:
        try:
            return opening()
        except Exception as error:
            attempts -= 1
            if not attempts or not re.search("already exists|duplicate key|UNIQUE constraint", str(error)):
                raise
            time.sleep(0.25)


def make_sampler(name: str, seed: int | None, options: Mapping[str, Any]) -> Any:
    """``optuna.samplers.<Name>Sampler``, whatever the case of ``name``.

    Raises:
        ConfigError: for an unknown name or wrong options.
    """
    found = _named(import_optuna().samplers, "Sampler", SEEDS.get(name.lower(), name), "sampler")
    seeded = {"seed": seed} if "seed" in inspect.signature(found).parameters else {}
    return _made(found, {**seeded, **options}, f"sampler {name!r}")


def make_pruner(name: str | None, options: Mapping[str, Any]) -> Any:
    """``optuna.pruners.<Name>Pruner``; ``None`` prunes nothing.

    Raises:
        ConfigError: for an unknown name or wrong options.
    """
    found = _named(import_optuna().pruners, "Pruner", name or "Nop", "pruner")
    return _made(found, options, f"pruner {name!r}")


def open_study(storage: Storage, name: str, objectives: Mapping[str, str], signature: str) -> Study:
    """The study of that name, made if it is not there.

    Args:
        storage: see ``open_storage``.
        name: the study's.
        objectives: names and directions (``"maximize"``, ``"minimize"``).
        signature: of all that makes trials comparable.

    Raises:
        FxcompressError: if it was made by another search.
    """
    optuna = import_optuna()
    words = (
        f"study {name!r}: was made by another search (another space, budget or objective); give this one "
        "another name or folder"
    )
    try:
        study = optuna.create_study(
            storage=storage, study_name=name, directions=list(objectives.values()), load_if_exists=True
        )
    except Exception as error:
        raise FxcompressError(f"study {name!r}: cannot be opened ({first_line(error)})") from error
    made = study.user_attrs.get("signature")
    if made is None:
        study.set_user_attr("signature", signature)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an experimental method
            study.set_metric_names(list(objectives))
    if made not in (None, signature) or [d.name.lower() for d in study.directions] != list(
        objectives.values()
    ):
        raise FxcompressError(words)
    return study


def default_storage(folder: Path) -> str:
    """The SQLite file in the folder of a search."""
    return f"sqlite:///{folder.resolve() / 'study.db'}"


def _named(module: Any, suffix: str, name: str, what: str) -> Any:
    known = {
        key.removesuffix(suffix).lower(): value
        for key, value in vars(module).items()
        if key.endswith(suffix) and not key.startswith("Base") and isinstance(value, type)
    }
    found = known.get(name.lower().removesuffix(suffix.lower()))
    if found is None:
        hint = did_you_mean(name.lower(), known) or f"; known are {', '.join(sorted(known))}"
        raise ConfigError(f"{what}: Optuna has no {what} {name!r}{hint}")
    return found


def _made(cls: Any, options: Mapping[str, Any], what: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental arguments
            return cls(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what}: {error}; see {cls.__name__} in Optuna's documentation") from error


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return scheme + separator + rest.rpartition("@")[2] if separator else url
