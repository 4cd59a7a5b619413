"""A speech model's way into the server."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from headrace.control.speech_version import load_speech_version
from headrace.errors import InvalidArgumentError
from headrace.protocol import model_config
from headrace.repository.policy import ModelPolicy


@pytest.mark.parametrize("low_priority", [False, True])
def test_the_priority_of_a_load_reaches_the_engine(tmp_path: Path, low_priority: bool) -> None:
    asked: list[tuple[Path, str, dict[str, Any]]] = []

    def load(folder: Path, name: str, **options: Any) -> Any:
        asked.append((folder, name, options))
        raise InvalidArgumentError("enough")

    with pytest.raises(InvalidArgumentError, match="enough"):
        load_speech_version(
            cast(Any, SimpleNamespace(name="talk")),
            1,
            cast(Any, SimpleNamespace(path=tmp_path / "speech.yaml")),
            model_config.ModelConfig(),
            ModelPolicy(),
            fingerprint="",
            plan=cast(Any, SimpleNamespace(instances=1, threads=1)),
            low_priority=low_priority,
            load=load,
        )
    assert asked == [(tmp_path, "talk", {"low_priority": low_priority})]
