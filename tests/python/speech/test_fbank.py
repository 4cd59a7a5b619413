"""Front-ends of streaming models against kaldi-native-fbank and NeMo's formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headrace import runtime

RATE = 16000


def voice(seconds: float, seed: int) -> Any:
    """Harmonics that glide, over noise: every band hears something."""
    random = np.random.default_rng(seed)
    time = np.arange(int(RATE * seconds)) / RATE
    pitch = 120 + 60 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    harmonics = sum(np.sin(k * phase) / k for k in range(1, 40))
    samples = 0.1 * harmonics + random.normal(0, 0.003, time.size)
    return samples.astype(np.float32)


@pytest.mark.parametrize(("kind", "bands"), [("kaldi", 40), ("kaldi", 80), ("librosa", 80)])
def test_as_kaldi_native_fbank(kind: str, bands: int) -> None:
    knf = pytest.importorskip("kaldi_native_fbank")
    options = knf.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.snip_edges = False
    options.frame_opts.samp_freq = RATE
    options.mel_opts.num_bins = bands
    options.mel_opts.low_freq = 20
    options.mel_opts.high_freq = -400
    if kind == "librosa":
        options.frame_opts.window_type = "hann"
        options.frame_opts.remove_dc_offset = False
        options.mel_opts.low_freq = 0
        options.mel_opts.high_freq = 8000
        options.mel_opts.is_librosa = True
    fbank = knf.OnlineFbank(options)
    samples = voice(1.3, 3)
    fbank.accept_waveform(RATE, samples.tolist())
    expected = np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])
    features = runtime.fbank(samples, kind=kind, bands=bands)
    assert features.shape == expected.shape
    np.testing.assert_allclose(features, expected, atol=2e-3)
    assert np.abs(features - expected).mean() < 2e-5


def nemo(samples: Any, bands: int) -> Any:
    """NeMo's FilterbankFeatures (dither 0, no normalisation), with librosa's mel filters."""
    signal = samples.astype(np.float64)
    signal = np.concatenate([signal[:1], signal[1:] - 0.97 * signal[:-1]])
    padded = np.pad(signal, 256)
    window = np.zeros(512)
    window[56:456] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)
    frames = [padded[at : at + 512] for at in range(0, len(padded) - 511, 160)]
    power = np.abs(np.fft.rfft(np.stack(frames) * window)) ** 2

    def mel(hertz: Any) -> Any:
        above = 15 + np.log(np.maximum(hertz, 1) / 1000) / (np.log(6.4) / 27)
        return np.where(hertz < 1000, hertz * 3 / 200, above)

    steps = np.linspace(0, mel(np.array(8000.0)), bands + 2)
    edges = np.where(steps < 15, steps * 200 / 3, 1000 * np.exp((steps - 15) * np.log(6.4) / 27))
    hertz = np.linspace(0, 8000, 257)
    rise = (hertz[None] - edges[:-2, None]) / np.diff(edges)[:-1, None]
    fall = (edges[2:, None] - hertz[None]) / np.diff(edges)[1:, None]
    weights = np.maximum(0, np.minimum(rise, fall)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return np.log(power @ weights.T + 2.0**-24)


@pytest.mark.parametrize("bands", [64, 80])
def test_nemo(bands: int) -> None:
    samples = voice(1.3, 4)
    features = runtime.fbank(samples, kind="nemo", bands=bands)
    # The last frames hear beyond the end.
    expected = nemo(samples, bands)[: len(features)]
    assert len(features) >= len(samples) // 160 - 1
    np.testing.assert_allclose(features, expected, atol=2e-3)
    assert np.abs(features - expected).mean() < 2e-5


@pytest.mark.parametrize("kind", ["kaldi", "nemo"])
def test_silence_is_finite(kind: str) -> None:
    features = runtime.fbank(np.zeros(RATE, np.float32), kind=kind)
    floor = np.log(np.finfo(np.float32).eps) if kind == "kaldi" else np.log(2.0**-24)
    np.testing.assert_allclose(features, floor, atol=1e-5)


def test_what_is_too_short_has_no_frames() -> None:
    assert runtime.fbank(np.zeros(100, np.float32)).shape == (0, 80)
    assert runtime.fbank(np.zeros(0, np.float32)).shape == (0, 80)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="kaldi, nemo or librosa"):
        runtime.fbank(np.zeros(1, np.float32), kind="whisper")
    with pytest.raises(ValueError, match="bands"):
        runtime.fbank(np.zeros(1, np.float32), bands=0)
