from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import random_speech

from headrace.errors import InvalidArgumentError
from headrace.speech.ct2 import read_ct2, whisper_from_ct2


def test_what_was_written_is_read(tmp_path: Path) -> None:
    weights = random_speech.whisper()
    random_speech.write_ct2(tmp_path / "model.bin", weights)
    model = read_ct2(tmp_path / "model.bin")
    assert (model.spec, model.revision) == ("WhisperSpec", 3)
    assert model.variables["decoder/projection/weight"].shape == (40, 24)  # an alias
    got = whisper_from_ct2(model, weights.alignment_heads)
    assert (got.encoder_layers, got.decoder_layers, got.heads) == (2, 2, 2)
    for mine, theirs in ((got.encoder, weights.encoder), (got.decoder, weights.decoder)):
        for name, array in theirs.items():
            np.testing.assert_array_equal(mine[name], array, name)


@pytest.mark.parametrize("keep", [0, 3, 20, 60, 5000, -1])
def test_a_file_that_ends_early(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.bin"
    random_speech.write_ct2(path, random_speech.whisper())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InvalidArgumentError, match="ends early"):
        read_ct2(path)


def test_other_formats(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"\x05\0\0\0" + bytes(100))
    with pytest.raises(InvalidArgumentError, match="format 6"):
        read_ct2(tmp_path / "model.bin")


def test_a_model_that_lacks_a_layer(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    random_speech.write_ct2(path, random_speech.whisper())
    model = read_ct2(path)
    del model.variables["encoder/conv2/bias"]
    with pytest.raises(InvalidArgumentError, match="encoder/conv2/bias"):
        whisper_from_ct2(model)
    model.variables["encoder/conv2/weight_scale"] = np.ones(1)
    with pytest.raises(InvalidArgumentError, match="quantized"):
        whisper_from_ct2(model)
