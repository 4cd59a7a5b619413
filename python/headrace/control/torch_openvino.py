"""torch.export programs for OpenVINO: its own front end reads them, and what it made of one is kept
as an IR file, which the core loads as any other.

Nothing says that the result is right: `backend: "auto"` compares its answers with PyTorch's.
"""

from __future__ import annotations

import logging
import secrets
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from headrace.control.torch_programs import TorchProgram, load_program
from headrace.errors import HeadraceError, InvalidArgumentError
from headrace.repository.digest import content_digest

__all__ = ["convert"]

_NAME = "model.xml"


def convert(torch: Any, path: Path, folder: Path) -> Path:
    """The .xml file of the program at `path`, in a folder of its own in `folder`; made if it is not
    there yet. Raises InvalidArgumentError when OpenVINO does not read the program, or nothing can
    be written."""
    digest = content_digest(path)
    versions = f"openvino-{metadata.version('openvino')}-torch-{torch.__version__}"
    target = folder / f"{digest}-{versions}"
    aside = folder / f".{target.name}.{secrets.token_hex(8)}.tmp"
    if target.is_dir():
        return target / _NAME
    try:
        model = _read(torch, str(path))
        if content_digest(path) != digest:
            raise InvalidArgumentError(f"{path} changed while it was converted")
        aside.mkdir(parents=True)
        import openvino

        openvino.save_model(model, str(aside / _NAME), compress_to_fp16=False)
        try:
            aside.rename(target)  # the graph and its weights appear together
        except OSError:
            if not target.is_dir():  # another process was faster
                raise
    except HeadraceError:
        raise
    except Exception as error:  # the front end's errors are of many kinds
        raise InvalidArgumentError(f"OpenVINO cannot convert {path}: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target / _NAME


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
