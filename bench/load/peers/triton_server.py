"""Real Triton (the tritonserver binary inside the nvidia-pytriton wheel) doing the benchmark's job.

Run it with the Python of a venv that has nvidia-pytriton:

    python3 -m venv triton-venv && triton-venv/bin/pip install nvidia-pytriton==0.7.0
    triton-venv/bin/python bench/load/peers/triton_server.py --port 8001 --mode python

The wheel carries the server, its libraries and a Python-backend stub for CPython 3.8 to 3.13; it
needs glibc >= 2.35 (Debian 12, Ubuntu 22.04), no GPU and no container.

Modes, the same identity model X -> Y, FP32 [-1, 16], max_batch_size 128 with dynamic batching:

- ``python``: tritonserver with its Python backend, the lean way;
- ``cached``: the same with Triton's response cache on, so that a repeated request never reaches a
  backend: what Triton's own front end can do at best;
- ``pytriton``: a numpy function with ``@batch``, bound through PyTriton as its users write it;
- ``no-model``: tritonserver with an empty repository, for ServerLive.
"""

import argparse
import importlib
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

CONFIG = """name: "identity"
backend: "python"
max_batch_size: {max_batch_size}
input [ {{ name: "X" data_type: TYPE_FP32 dims: [ 16 ] }} ]
output [ {{ name: "Y" data_type: TYPE_FP32 dims: [ 16 ] }} ]
dynamic_batching {{ {batching} }}
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
response_cache {{ enable: {cache} }}
"""


def package_root() -> Path:
    """Folder of the installed pytriton package."""
    try:
        module = importlib.import_module("pytriton")
    except ImportError as error:
        sys.exit(
            f"{error}; this Python ({sys.executable}) needs: pip install nvidia-pytriton==0.7.0"
        )
    return Path(str(module.__file__)).parent


def run_tritonserver(mode: str, port: int, work: Path, max_batch_size: int, batching: str) -> None:
    """Replaces this process by tritonserver; ``work`` gets the repository and the backends."""
    dist = package_root() / "tritonserver"
    repository = work / "models"
    repository.mkdir()
    backends = work / "backends"
    shutil.copytree(dist / "backends", backends)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = dist / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        sys.exit(f"{stub} is missing: nvidia-pytriton has no Python backend for Python {version}")
    shutil.copy(stub, backends / "python" / stub.name)
    if mode != "no-model":
        folder = repository / "identity" / "1"
        folder.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("triton_python_model.py"), folder / "model.py")
        shutil.copy(Path(__file__).with_name("device.py"), folder)
        config = CONFIG.format(
            cache="true" if mode == "cached" else "false",
            max_batch_size=max_batch_size,
            batching=batching,
        )
        (folder.parent / "config.pbtxt").write_text(config)

    command = [
        str(dist / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        f"--cache-directory={dist / 'caches'}",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={port}",
        "--allow-http=false",
        "--allow-metrics=false",
        f"--backend-config=python,shm-region-prefix-name=bench{os.getpid()}",
    ]
    if mode == "cached":
        command.append("--cache-config=local,size=67108864")
    environment = dict(os.environ)
    libraries = package_root().parent / "nvidia_pytriton.libs"
    environment["LD_LIBRARY_PATH"] = ":".join(
        path for path in (environment.get("LD_LIBRARY_PATH"), str(libraries)) if path
    )
    # The Python backend's stub finds numpy through the `python3` it sees first.
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment.get('PATH', '')}"
    os.execve(command[0], command, environment)


def run_pytriton(port: int) -> None:
    pytriton = importlib.import_module("pytriton.triton")
    decorators = importlib.import_module("pytriton.decorators")
    config = importlib.import_module("pytriton.model_config")
    numpy = importlib.import_module("numpy")

    @decorators.batch  # type: ignore[untyped-decorator]
    def identity(**inputs: Any) -> dict[str, Any]:
        return {"Y": inputs["X"]}

    triton_config = pytriton.TritonConfig(
        grpc_address="127.0.0.1", grpc_port=port, allow_http=False, allow_metrics=False
    )
    with pytriton.Triton(config=triton_config) as triton:
        triton.bind(
            model_name="identity",
            infer_func=identity,
            inputs=[config.Tensor(name="X", dtype=numpy.float32, shape=(16,))],
            outputs=[config.Tensor(name="Y", dtype=numpy.float32, shape=(16,))],
            config=config.ModelConfig(max_batch_size=128),
        )
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        triton.serve()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--mode", choices=["python", "cached", "pytriton", "no-model"], default="python"
    )
    parser.add_argument(
        "--work", type=Path, help="empty folder for the model repository (default: a temporary one)"
    )
    parser.add_argument("--max-batch-size", type=int, default=128)
    parser.add_argument("--batching", default="", help="what dynamic_batching { } holds")
    options = parser.parse_args()
    if options.mode == "pytriton":
        run_pytriton(options.port)
    else:
        work = options.work or Path(tempfile.mkdtemp(prefix="triton-peer-"))
        run_tritonserver(options.mode, options.port, work, options.max_batch_size, options.batching)


if __name__ == "__main__":
    main()
