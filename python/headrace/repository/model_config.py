"""Configurations: read from config.pbtxt or JSON, versions chosen, labels found.

The door of what is known about a configuration: `complete` (completion.py) and `validate`
(validation.py) are handed on from here.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable
from pathlib import Path

from google.protobuf import json_format, text_format

from headrace.errors import InvalidArgumentError
from headrace.protocol import model_config
from headrace.protocol.descriptors import pool
from headrace.repository.completion import Defaults, TensorSpecLike, complete
from headrace.repository.names import check_inner_path
from headrace.repository.scan import ModelEntry
from headrace.repository.validation import unused_settings, validate

__all__ = [
    "Defaults",
    "TensorSpecLike",
    "complete",
    "config_from_json",
    "metadata_platform",
    "parse_config",
    "read_config",
    "read_labels",
    "select_versions",
    "unused_settings",
    "validate",
]

log = logging.getLogger(__name__)

MAX_CONFIG_BYTES = 4 << 20
MAX_LABEL_BYTES = 16 << 20
MAX_JSON_DEPTH = 32  # a ModelConfig nests 9 deep


def _read_bounded(path: Path, limit: int, what: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {what} {path}: {error.strerror}") from None
    if len(data) > limit:
        raise InvalidArgumentError(f"{what} {path} is larger than {limit} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidArgumentError(
            f"{path}:{line}: not UTF-8 text; save the file as UTF-8"
        ) from None


def _hint(message: str) -> str:
    """What was probably meant, for the two mistakes people make: field names and enum values."""
    match = re.search(r'[Mm]essage type "([\w.]+)" has no field named "(\w+)"', message)
    if match is not None:
        try:
            fields = list(pool().FindMessageTypeByName(match[1]).fields_by_name)
        except KeyError:
            return ""
        close = difflib.get_close_matches(match[2], fields, n=1)
        return f"; did you mean '{close[0]}'?" if close else f"; it has {', '.join(sorted(fields))}"
    match = re.search(r'[Ee]num type "([\w.]+)" has no value', message)
    if match is not None:
        try:
            values = pool().FindEnumTypeByName(match[1]).values_by_name
        except KeyError:
            return ""
        return f"; it must be one of {', '.join(values)}"
    return ""


def parse_config(text: str, source: str) -> model_config.ModelConfig:
    """Text format -> ModelConfig. `source` names it in errors: "models/digits/config.pbtxt"."""
    config = model_config.ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        # "3:5 : text"; a position may be missing.
        message = re.sub(r"^\d+:\d+ ?: ?", "", str(error)).strip(" .\n")
        line = error.GetLine()
        column = error.GetColumn()
        place = "" if line is None else f":{line}" + ("" if column is None else f":{column}")
        raise InvalidArgumentError(f"{source}{place}: {message}{_hint(message)}") from None
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        # Some values get past the parser and are refused by the message itself.
        raise InvalidArgumentError(f"{source}: {error}") from None
    return config


def read_config(entry: ModelEntry) -> model_config.ModelConfig:
    """The model's config.pbtxt as it stands; an empty one when there is none.

    Raises InvalidArgumentError with file and line. A `name` in it must be the directory's.
    """
    if entry.config_path is None:
        return model_config.ModelConfig()
    text = _read_bounded(entry.config_path, MAX_CONFIG_BYTES, "model configuration")
    config = parse_config(text, str(entry.config_path))
    if config.name and config.name != entry.name:
        raise InvalidArgumentError(
            f"{entry.config_path}: unexpected directory name '{entry.name}' for model "
            f"'{config.name}', directory name must equal model name; remove `name` or rename one"
        )
    return config


def _check_json_depth(text: str) -> None:
    # Without its escapes, every other piece between quotes is outside of strings.
    outside = re.sub(r"\\.", "", text, flags=re.DOTALL).split('"')[::2]
    depth = 0
    for piece in outside:
        for bracket in re.findall(r"[\[\]{}]", piece):
            depth += 1 if bracket in "[{" else -1
            if depth > MAX_JSON_DEPTH:
                raise InvalidArgumentError(
                    f"model configuration is nested deeper than {MAX_JSON_DEPTH} levels"
                )


def config_from_json(text: str) -> model_config.ModelConfig:
    """JSON -> ModelConfig: the `config` parameter of RepositoryModelLoad.

    Field names as in config.pbtxt (camelCase too), enums by name or number. Raises
    InvalidArgumentError.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise InvalidArgumentError(f"model configuration is larger than {MAX_CONFIG_BYTES} bytes")
    _check_json_depth(text)
    if not text.lstrip().startswith("{"):  # json_format takes "[]" for an empty message
        raise InvalidArgumentError("cannot read the model configuration as JSON: not an object")
    config = model_config.ModelConfig()
    try:
        json_format.Parse(text, config)
    except (json_format.Error, ValueError, TypeError, RecursionError, AttributeError) as error:
        # protobuf appends all fields there are; _hint says it better.
        message = (str(error) or type(error).__name__).split("\n Available Fields")[0].rstrip(".")
        raise InvalidArgumentError(
            f"cannot read the model configuration as JSON: {message[:2000]}{_hint(message)}"
        ) from None
    return config


def select_versions(
    config: model_config.ModelConfig, available: Iterable[int], name: str = ""
) -> tuple[int, ...]:
    """The versions to serve by `version_policy` (none given: the latest one), ascending.

    Raises InvalidArgumentError when that is none of the available ones.
    """
    there = sorted(set(available))
    policy = config.version_policy.WhichOneof("policy_choice")
    if policy == "all":
        chosen = there
    elif policy == "specific":
        wanted = set(config.version_policy.specific.versions)
        chosen = [version for version in there if version in wanted]
        for version in sorted(wanted - set(there)):
            log.warning(
                "model '%s': version %d of version_policy.specific has no directory",
                name or config.name,
                version,
            )
    else:
        count = config.version_policy.latest.num_versions if policy == "latest" else 1
        chosen = there[-count:] if count > 0 else []
    if not chosen:
        found = f"found {', '.join(map(str, there))}" if there else "found no version directory"
        raise InvalidArgumentError(
            f"at least one version must be available under the version policy of model "
            f"'{name or config.name}': {found}; a version is a directory like 1/ with a model"
        )
    return tuple(chosen)


def metadata_platform(config: model_config.ModelConfig) -> str:
    """`platform` of ModelMetadata: the configuration's, or the backend's name as Triton does it."""
    return config.platform or config.backend


def read_labels(entry: ModelEntry, filename: str) -> tuple[str, ...]:
    """Lines of an output's `label_filename`, which lies in the model's directory.

    Raises InvalidArgumentError; at most 16 MiB are read.
    """
    inner = check_inner_path(filename, "label_filename")
    text = _read_bounded(entry.path / inner, MAX_LABEL_BYTES, "label file")
    return tuple(line.rstrip("\r") for line in text.rstrip("\n").split("\n")) if text else ()
