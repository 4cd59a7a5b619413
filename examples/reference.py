"""The same requests through onnxruntime, one at a time: what the server's answers should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from rich.console import Console
from rich.table import Table

Array = npt.NDArray[Any]

# Both compute in float32, in another order.
TOLERANCE = 1e-3


class Reference:
    """Compares answers with onnxruntime's and keeps the largest difference of each model."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._compared: dict[str, tuple[int, float]] = {}

    def compare(self, model: str, inputs: dict[str, Array], answer: Any) -> list[Array]:
        """Compares every output of a tritonclient answer; returns onnxruntime's."""
        session = self._sessions.get(model)
        if session is None:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            weights = self._repository / model / "1" / "model.onnx"
            session = onnxruntime.InferenceSession(str(weights), options)
            self._sessions[model] = session
        expected = session.run(None, inputs)
        count, worst = self._compared.get(model, (0, 0.0))
        for output, want in zip(session.get_outputs(), expected, strict=True):
            got = answer.as_numpy(output.name)
            same = got is not None and got.shape == want.shape
            worst = max(worst, float(np.abs(got - want).max()) if same else float("inf"))
        self._compared[model] = (count + 1, worst)
        return expected

    def report(self, console: Console) -> list[str]:
        """Prints the table; returns a line for each model that is off by more than TOLERANCE."""
        console.rule("[bold]The same through onnxruntime[/bold]", align="left")
        table = Table("model", "answers compared", "largest difference")
        for model, (count, worst) in self._compared.items():
            table.add_row(model, str(count), f"{worst:.1e}")
        console.print(table)
        return [
            f"{model}: off by {worst:.1e} from onnxruntime, allowed {TOLERANCE:.0e}"
            for model, (_, worst) in self._compared.items()
            if not worst <= TOLERANCE
        ]
