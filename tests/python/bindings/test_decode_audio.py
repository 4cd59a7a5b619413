"""Clients' audio against independent implementations: libsndfile for the formats, SciPy and NumPy
for the resampler."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from headrace import runtime
from headrace.errors import InvalidArgumentError, UnimplementedError

soundfile = pytest.importorskip("soundfile")


def speechlike(rate: int, seconds: float = 0.48, seed: int = 3) -> Any:
    """Noise without what 16 kHz cannot carry, smooth at its ends."""
    count = int(rate * seconds)
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(count))
    spectrum[np.fft.rfftfreq(count, 1 / rate) > 0.40 * min(rate, 16000)] = 0
    signal = np.fft.irfft(spectrum, count) * np.hanning(count)
    return (0.5 * signal / np.abs(signal).max()).astype(np.float32)


def written(samples: Any, rate: int, **kinds: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **kinds)
    return file.getvalue()


def snr_db(expected: Any, actual: Any) -> float:
    noise = np.sum((actual - expected) ** 2)
    return float(10 * np.log10(np.sum(expected**2) / max(noise, 1e-30)))


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_resampler_is_fouriers(rate: int) -> None:
    samples = speechlike(rate)
    pcm = (samples * 32767).round().astype("<i2")
    (heard,) = runtime.decode_audio(pcm.tobytes(), encoding=1, sample_rate=rate)
    count = len(samples) * 16000 // rate
    # A band-limited signal, periodic by its silent ends, at other points: exact by Fourier.
    spectrum = np.fft.rfft(pcm.astype(np.float64) / 32768)
    points = np.zeros(count // 2 + 1, complex)
    kept = min(len(spectrum), len(points))
    points[:kept] = spectrum[:kept]
    expected = np.fft.irfft(points, count) * count / len(samples)
    assert abs(len(heard) - count) <= 1
    assert snr_db(expected, heard[:count]) > 60


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_resampler_is_scipys(rate: int) -> None:
    signal = pytest.importorskip("scipy.signal")
    samples = speechlike(rate)
    pcm = (samples * 32767).round().astype("<i2")
    (heard,) = runtime.decode_audio(pcm.tobytes(), encoding=1, sample_rate=rate)
    divisor = int(np.gcd(rate, 16000))
    expected = signal.resample_poly(
        pcm.astype(np.float64) / 32768, 16000 // divisor, rate // divisor, window=("kaiser", 9.0)
    )
    count = min(len(heard), len(expected))
    assert snr_db(expected[:count], heard[:count]) > 40  # its pass band is narrower


@pytest.mark.parametrize(
    ("container", "subtype", "at_least_db"),
    [
        ("WAV", "PCM_U8", 20),
        ("WAV", "PCM_16", 70),
        ("WAV", "PCM_24", 100),
        ("WAV", "PCM_32", 100),
        ("WAV", "FLOAT", 100),
        ("WAV", "DOUBLE", 100),
        ("WAVEX", "PCM_16", 70),
        ("WAV", "ULAW", 25),
        ("WAV", "ALAW", 25),
        ("FLAC", "PCM_16", 70),
        ("FLAC", "PCM_24", 100),
        ("FLAC", "PCM_S8", 20),
    ],
)
def test_formats_are_libsndfiles(container: str, subtype: str, at_least_db: float) -> None:
    left, right = speechlike(16000), speechlike(16000, seed=4)
    file = written(np.stack([left, right], 1), 16000, format=container, subtype=subtype)
    try:
        heard = runtime.decode_audio(file, separate_channels=True)
    except UnimplementedError as error:
        pytest.skip(str(error))
    theirs, _ = soundfile.read(io.BytesIO(file), dtype="float32")
    assert len(heard) == 2
    for channel, expected in enumerate((left, right)):
        assert len(heard[channel]) == len(expected)
        assert snr_db(expected, heard[channel]) > at_least_db
        np.testing.assert_allclose(heard[channel], theirs[:, channel], atol=1e-6)
    (first,) = runtime.decode_audio(file)
    np.testing.assert_array_equal(first, heard[0])


@pytest.mark.parametrize("rate", [16000, 48000])
def test_opus_is_libsndfiles(rate: int) -> None:
    samples = speechlike(rate, seconds=1.0)
    file = written(samples, rate, format="OGG", subtype="OPUS")
    try:
        (heard,) = runtime.decode_audio(file)
    except UnimplementedError as error:
        pytest.skip(str(error))
    theirs, its_rate = soundfile.read(io.BytesIO(file), dtype="float32")
    assert abs(len(heard) - len(theirs) * 16000 // its_rate) <= 16
    # Lossy, and noise at that: near what another decoder makes of the same bytes.
    pcm = (np.clip(theirs, -1, 1) * 32767).round().astype("<i2")
    (expected,) = runtime.decode_audio(pcm.tobytes(), encoding=1, sample_rate=its_rate)
    count = min(len(heard), len(expected))
    assert snr_db(expected[:count], heard[:count]) > 15


def test_what_is_cut_off_and_what_is_none() -> None:
    file = written(speechlike(16000), 16000, format="FLAC", subtype="PCM_16")
    try:
        (whole,) = runtime.decode_audio(file)
    except UnimplementedError as error:
        pytest.skip(str(error))
    (part,) = runtime.decode_audio(file[: len(file) * 3 // 4])
    assert 0 < len(part) < len(whole)
    np.testing.assert_array_equal(part, whole[: len(part)])
    broken = bytearray(file)
    broken[len(file) // 2] ^= 0xFF
    for audio in (bytes(broken), file[:30], b"fLaC", b"OggS" + bytes(100), b"RIFF"):
        with pytest.raises(InvalidArgumentError):
            runtime.decode_audio(audio)
    assert runtime.decode_audio(b"") == []
    with pytest.raises(InvalidArgumentError, match="longer"):
        runtime.decode_audio(file, max_seconds=0.1)
