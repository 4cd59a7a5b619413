"""Model of Triton's Python backend: Y = X. Copied into a repository as ``1/model.py``, with
``device.py`` beside it."""

import sys
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

sys.path.insert(0, str(Path(__file__).parent))
import device


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers each of the requests Triton batched for this call with its own input."""
        responses = []
        device.run(len(requests))
        for request in requests:
            values = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
            responses.append(
                pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("Y", values)])
            )
        return responses
