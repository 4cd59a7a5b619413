"""Model repositories: what lies in them (scan), what changed (watch), which file is the model
(artifact), how it is to be served (model_config, completion, validation). Loads nothing."""

from headrace.repository.artifact import Artifact, backend_of, engines, find_artifact
from headrace.repository.completion import Defaults, TensorSpecLike, complete
from headrace.repository.model_config import (
    config_from_json,
    metadata_platform,
    parse_config,
    read_config,
    read_labels,
    select_versions,
)
from headrace.repository.names import check_inner_path, check_model_name, is_model_name
from headrace.repository.scan import ModelEntry, RepositoryScan, find_model, scan, scan_model
from headrace.repository.validation import unused_settings, validate
from headrace.repository.watch import Changes, Watch, diff, settle

__all__ = [
    "Artifact",
    "Changes",
    "Defaults",
    "ModelEntry",
    "RepositoryScan",
    "TensorSpecLike",
    "Watch",
    "backend_of",
    "check_inner_path",
    "check_model_name",
    "complete",
    "config_from_json",
    "diff",
    "engines",
    "find_artifact",
    "find_model",
    "is_model_name",
    "metadata_platform",
    "parse_config",
    "read_config",
    "read_labels",
    "scan",
    "scan_model",
    "select_versions",
    "settle",
    "unused_settings",
    "validate",
]
