"""What flows through a model on the samples: of each tensor that quantised layers read, the
histogram, the largest magnitude of each channel and some rows. Needs onnx and onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import InvalidArgumentError
from headrace.optimize.measure import session
from headrace.optimize.ranges import Histogram
from headrace.optimize.samples import Chunk

__all__ = ["Observed", "observe"]

Array = npt.NDArray[Any]
_ROWS = 256


@dataclass
class Observed:
    histogram: Histogram = field(default_factory=Histogram)
    channel_max: Array | None = None  # along the last axis
    rows: list[Array] = field(default_factory=list)

    def sample(self) -> Array:
        """At most 256 rows, (n, channels)."""
        rows = np.concatenate(self.rows)
        step = max(1, len(rows) // _ROWS)
        return np.ascontiguousarray(rows[::step][:_ROWS])


def observe(
    model: Any,
    tensors: Collection[str],
    by_channel: Collection[str],
    chunks: Sequence[Chunk],
    tick: Callable[[int], None],
) -> dict[str, Observed]:
    """`by_channel`: those whose last axis is what a weight matrix multiplies."""
    import onnx
    from onnx import helper

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    inputs = {i.name for i in model.graph.input}
    given = {o.name for o in model.graph.output}
    names = sorted(set(tensors))
    computed = [n for n in names if n not in inputs]
    watched.graph.output.extend(
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None)
        for n in computed
        if n not in given
    )
    running = session(watched.SerializeToString(), exact=False)
    found = {name: Observed() for name in names}
    for done, chunk in enumerate(chunks):
        try:
            values = dict(zip(computed, running.run(computed, chunk.inputs), strict=True))
        except Exception as error:  # onnxruntime's exceptions share no base class but this
            raise InvalidArgumentError(f"the model fails on the samples: {error}") from error
        for name in names:
            value = values[name] if name in values else chunk.inputs[name]
            try:
                found[name].histogram.add(value)
            except InvalidArgumentError as error:
                raise InvalidArgumentError(f"{error}, in '{name}', on the samples") from None
            if name in by_channel and value.size:
                _add_rows(found[name], value.reshape(-1, value.shape[-1]), len(chunks))
        tick(done + 1)
    return found


def _add_rows(observed: Observed, rows: Array, chunks: int) -> None:
    largest = np.abs(rows).max(axis=0)
    old = observed.channel_max
    observed.channel_max = largest if old is None else np.maximum(old, largest)
    wanted = max(4, 2 * _ROWS // chunks)
    step = max(1, len(rows) // wanted)
    observed.rows.append(rows[::step][:wanted].copy())
