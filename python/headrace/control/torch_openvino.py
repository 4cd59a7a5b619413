"""torch.export programs for OpenVINO: its own front end reads them, and what it made of one is kept
as an IR file, which the core loads as any other.

Nothing says that the result is right: `backend: "auto"` compares its answers with PyTorch's.
"""

from __future__ import annotations

import logging
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from headrace.control.torch_programs import TorchProgram, load_program
from headrace.errors import HeadraceError, InvalidArgumentError
from headrace.repository.digest import content_digest

__all__ = ["convert"]


def convert(torch: Any, path: Path, folder: Path) -> Path:
    """The .xml file of the program at `path`, in `folder`; made if it is not there yet. Raises
    InvalidArgumentError when OpenVINO does not read the program, or nothing can be written."""
    target = folder / f"{content_digest(path)}-{metadata.version('openvino')}.xml"
    if target.is_file() and target.with_suffix(".bin").is_file():
        return target
    try:
        model = _read(torch, str(path))
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".converted-") as aside:
            import openvino

            whole = Path(aside) / target.name
            openvino.save_model(model, str(whole), compress_to_fp16=False)
            # Who sees the .xml must see the weights.
            whole.with_suffix(".bin").replace(target.with_suffix(".bin"))
            whole.replace(target)
    except HeadraceError:
        raise
    except Exception as error:  # the front end's errors are of many kinds
        raise InvalidArgumentError(f"OpenVINO cannot convert {path}: {error}") from error
    return target


def _not_operators(record: logging.LogRecord) -> bool:
    """The decoder tells of each operator that this PyTorch lacks, with a traceback."""
    return record.filename != "fx_decoder.py"


def _read(torch: Any, path: str) -> Any:
    from openvino import PartialShape
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch import fx_decoder as decoder

    program = load_program(torch, path)
    said = TorchProgram(torch, path, program)
    reader = FrontEndManager().load_by_framework("pytorch")
    root = logging.getLogger()
    root.addFilter(_not_operators)
    try:
        decoded = decoder.TorchFXPythonDecoder.from_exported_program(program)  # outlives the rest
    finally:
        root.removeFilter(_not_operators)
    model = reader.convert(reader.load(decoded))
    for tensors, specs in ((model.inputs, said.inputs), (model.outputs, said.outputs)):
        if len(tensors) != len(specs):
            raise InvalidArgumentError(
                f"OpenVINO makes {len(tensors)} tensors of the {len(specs)} of {path}"
            )
        for tensor, spec in zip(tensors, specs, strict=True):
            tensor.get_tensor().set_names({spec.name})
    model.reshape({at: PartialShape(spec.dims) for at, spec in enumerate(said.inputs)})
    return model
