"""Graphs with random weights in onnxruntime: what the engine relies on, and the arithmetic itself
against plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import random_speech as random_models

from headrace.speech import moonshine, whisper
from headrace.speech.graph import quantize_columns

onnxruntime = pytest.importorskip("onnxruntime")

HEADS, WIDTH = random_models.HEADS, random_models.WIDTH
MASKED = np.float32(-1e9)


def session(model: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


class Decoder:
    def __init__(self, networks: Any) -> None:
        self.session = session(networks.decoder)
        self.outputs = [output.name for output in self.session.get_outputs()]

    def run(
        self, ids: Any, positions: Any, mask: Any, past: dict[str, Any], cross: dict[str, Any]
    ) -> dict[str, Any]:
        batch, frames = len(ids), next(iter(cross.values())).shape[2]
        feeds = {
            "input_ids": np.asarray(ids, np.int64),
            "positions": np.asarray(positions, np.int64),
            "self_mask": mask,
            "cross_mask": cross.get("mask", np.zeros((batch, 1, 1, frames), np.float32)),
            **past,
            **{name: value for name, value in cross.items() if name != "mask"},
        }
        return dict(zip(self.outputs, self.session.run(None, feeds), strict=True))


def empty_past(batch: int = 1, length: int = 1) -> dict[str, Any]:
    shape = (batch, HEADS, length, WIDTH)
    return {
        f"past.{i}.{name}": np.zeros(shape, np.float32)
        for i in range(random_models.LAYERS)
        for name in ("key", "value")
    }


def causal(new: int, old: int) -> Any:
    """Nothing of the `old` cached positions, then each of the new ones and those before it."""
    mask = np.full((1, 1, new, old + new), MASKED, np.float32)
    for row in range(new):
        mask[:, :, row, old : old + row + 1] = 0
    return mask


@pytest.fixture(scope="module", params=["moonshine", "whisper"])
def case(request: pytest.FixtureRequest) -> Any:
    """(networks in f32, networks with int8 weights, cross keys and values of a clip)."""
    random = np.random.default_rng(3)
    if request.param == "moonshine":
        module, weights = moonshine, random_models.moonshine()
        data = {"input_values": random.normal(0, 0.3, (1, 5000)).astype(np.float32)}
    else:
        module, weights = whisper, random_models.whisper()
        data = {"input_features": random.normal(0, 1, (1, 80, 50)).astype(np.float32)}
    networks = module.build(weights, int8=False, metadata={"a": "b"})
    small = module.build(weights, int8=True, metadata={})
    encoder = session(networks.encoder)
    names = [output.name for output in encoder.get_outputs()]
    return networks, small, dict(zip(names, encoder.run(None, data), strict=True))


def test_cross_attention_comes_from_the_encoder(case: Any) -> None:
    _, _, cross = case
    assert list(cross) == ["cross.0.key", "cross.0.value", "cross.1.key", "cross.1.value"]
    frames = cross["cross.0.key"].shape[2]
    assert frames in (25, 11)  # Whisper: half of 50; Moonshine: 5000 samples by its three strides
    assert all(value.shape == (1, HEADS, frames, WIDTH) for value in cross.values())


def test_one_pass_equals_steps(case: Any) -> None:
    networks, _, cross = case
    decoder = Decoder(networks)
    ids = [1, 7, 3, 30, 12]
    whole = decoder.run([ids], [range(5)], causal(5, 1), empty_past(), cross)
    assert whole["logits"].shape == (1, 5, random_models.VOCABULARY)
    past = empty_past()
    for at, token in enumerate(ids):
        mask = np.zeros((1, 1, 1, at + 2), np.float32)
        mask[..., 0] = MASKED
        step = decoder.run([[token]], [[at]], mask, past, cross)
        np.testing.assert_allclose(step["logits"][0, 0], whole["logits"][0, at], atol=2e-4)
        past = {
            name: np.concatenate([value, step[name.replace("past", "present")]], axis=2)
            for name, value in past.items()
        }


def test_rows_of_different_lengths_are_what_they_are_alone(case: Any) -> None:
    networks, _, cross = case
    decoder = Decoder(networks)
    first, second = [1, 7, 3, 30], [1, 9]
    alone = [
        decoder.run([ids], [range(len(ids))], causal(len(ids), 1), empty_past(), cross)
        for ids in (first, second)
    ]
    frames = cross["cross.0.key"].shape[2]
    both = {
        name: np.concatenate([value, np.pad(value[:, :, :-4], ((0, 0), (0, 0), (0, 4), (0, 0)))])
        for name, value in cross.items()
    }
    both["mask"] = np.zeros((2, 1, 1, frames), np.float32)
    both["mask"][1, ..., -4:] = MASKED
    shorter = {name: value[:, :, :-4] for name, value in cross.items()}
    alone[1] = decoder.run([second], [range(2)], causal(2, 1), empty_past(), shorter)
    mask = np.concatenate([causal(4, 3), causal(4, 3)])
    got = decoder.run([first, [*second, 0, 0]], [range(4)] * 2, mask, empty_past(2, 3), both)
    np.testing.assert_allclose(got["logits"][0], alone[0]["logits"][0], atol=2e-4)
    np.testing.assert_allclose(got["logits"][1, :2], alone[1]["logits"][0], atol=2e-4)


def test_int8_weights_are_close(case: Any) -> None:
    networks, small, cross = case
    arguments = ([[1, 7, 3]], [range(3)], causal(3, 1), empty_past(), cross)
    exact = Decoder(networks).run(*arguments)["logits"]
    near = Decoder(small).run(*arguments)["logits"]
    assert np.abs(exact - near).max() < 0.1 * np.abs(exact).max()
    assert not np.array_equal(exact, near)
    assert len(small.decoder.SerializeToString()) < len(networks.decoder.SerializeToString())


def test_columns_keep_their_scale() -> None:
    weight = np.array([[1.0, 100.0, 0.0], [-0.5, 50.0, 0.0]], np.float32)
    values, scale = quantize_columns(weight)
    assert values.dtype == np.int8
    np.testing.assert_allclose(values * scale, weight, atol=0.4)
    np.testing.assert_allclose((values * scale)[:, 0], weight[:, 0], atol=0.004)


def test_alignment_is_a_distribution_over_frames() -> None:
    networks = whisper.build(random_models.whisper(), int8=False, metadata={})
    cross = {
        f"cross.{i}.{name}": np.ones((1, HEADS, 6, WIDTH), np.float32)
        for i in range(random_models.LAYERS)
        for name in ("key", "value")
    }
    got = Decoder(networks).run([[1, 2]], [range(2)], causal(2, 1), empty_past(), cross)
    assert got["alignment"].shape == (1, 2, 6)
    np.testing.assert_allclose(got["alignment"].sum(axis=2), 1.0, rtol=1e-5)


def norm(x: Any, weight: Any, bias: Any = 0.0) -> Any:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def attend(q: Any, k: Any, v: Any) -> Any:
    """(time, size) each; causal where q and k are of one length."""
    out = np.empty_like(q)
    for head in range(HEADS):
        part = slice(head * WIDTH, (head + 1) * WIDTH)
        scores = q[:, part] @ k[:, part].T / np.sqrt(WIDTH)
        if len(q) == len(k):
            scores = np.where(np.tri(len(q), dtype=bool), scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, part] = scores / scores.sum(-1, keepdims=True) @ v[:, part]
    return out


def rotated(x: Any, inv_freq: Any) -> Any:
    """Neighbouring columns of each head are a pair that turns with the position."""
    x = x.copy()
    for head in range(HEADS):
        for j, frequency in enumerate(inv_freq):
            a, b = head * WIDTH + 2 * j, head * WIDTH + 2 * j + 1
            angle = np.arange(len(x)) * frequency
            first, second = x[:, a].copy(), x[:, b].copy()
            x[:, a] = first * np.cos(angle) - second * np.sin(angle)
            x[:, b] = second * np.cos(angle) + first * np.sin(angle)
    return x


def test_moonshine_decodes_as_written_down() -> None:
    """The published equations in plain numpy."""
    weights = random_models.moonshine()
    arrays, ids, memory = (
        weights.decoder,
        [1, 7, 3],
        np.random.default_rng(4).normal(0, 1, (9, random_models.SIZE)),
    )
    x = arrays["embedding"][ids].astype(np.float64)
    cross: dict[str, Any] = {}
    for i in range(random_models.LAYERS):
        layer = f"layers.{i}"
        w = {name: arrays[f"{layer}.self_attn.{name}"] for name in "qkvo"}
        h = norm(x, arrays[f"{layer}.norm1"])
        q, k = (rotated(h @ w[name], weights.inv_freq) for name in "qk")
        x = x + attend(q, k, h @ w["v"]) @ w["o"]
        w = {name: arrays[f"{layer}.encoder_attn.{name}"] for name in "qkvo"}
        h = norm(x, arrays[f"{layer}.norm2"])
        x = x + attend(h @ w["q"], memory @ w["k"], memory @ w["v"]) @ w["o"]
        for name in ("key", "value"):
            split = (memory @ w[name[0]]).reshape(1, -1, HEADS, WIDTH).transpose(0, 2, 1, 3)
            cross[f"cross.{i}.{name}"] = split.astype(np.float32)
        h = norm(x, arrays[f"{layer}.norm3"])
        up = h @ arrays[f"{layer}.mlp.up"] + arrays[f"{layer}.mlp.up.bias"]
        hidden, gate = np.split(up, 2, axis=-1)
        gated = gate / (1 + np.exp(-gate)) * hidden
        x = x + gated @ arrays[f"{layer}.mlp.down"] + arrays[f"{layer}.mlp.down.bias"]
    expected = norm(x, arrays["norm"]) @ arrays["embedding"].T
    networks = moonshine.build(weights, int8=False, metadata={})
    got = Decoder(networks).run([ids], [range(3)], causal(3, 1), empty_past(), cross)
    np.testing.assert_allclose(got["logits"][0], expected, rtol=1e-3, atol=1e-3)
