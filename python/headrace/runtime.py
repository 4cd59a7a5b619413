"""The C++ core. The only module that imports the extension `headrace._ext`; everything else imports
from here, so that a missing or broken build is explained once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from headrace._ext import (
        Accept,
        AdmissionPolicy,
        BatchPolicy,
        CachedServable,
        CallEvents,
        Case,
        ChainStep,
        FallbackChain,
        Guarded,
        HealthPolicy,
        Hedged,
        HumanDesk,
        Int8Linear,
        Link,
        Model,
        ModelSpec,
        ModelVersion,
        OpenVinoBackend,
        QueuePolicy,
        ResponseCache,
        Servable,
        Server,
        ServerCall,
        ServerOptions,
        ShadowTally,
        SpeechRecognizer,
        SpeechServable,
        SpeechStream,
        TensorRtBackend,
        TensorSpec,
        TlsOptions,
        Traffic,
        __version__,
        available_cores,
        callback_model,
        decode_audio,
        fbank,
        histogram_bounds_ns,
        plan_cores,
    )
except ImportError as error:
    raise ImportError(
        f"Headrace's C++ core cannot be loaded: {error}. Build it with `pip install .` in the "
        "source "
        "tree, or install the wheel; `headrace doctor` says what is missing."
    ) from error

__all__ = [
    "Accept",
    "AdmissionPolicy",
    "Array",
    "BatchPolicy",
    "CachedServable",
    "CallEvents",
    "Case",
    "ChainStep",
    "FallbackChain",
    "Guarded",
    "HealthPolicy",
    "Hedged",
    "HumanDesk",
    "Int8Linear",
    "Link",
    "Model",
    "ModelSpec",
    "ModelVersion",
    "OpenVinoBackend",
    "QueuePolicy",
    "ResponseCache",
    "Servable",
    "Server",
    "ServerCall",
    "ServerOptions",
    "ShadowTally",
    "SpeechRecognizer",
    "SpeechServable",
    "SpeechStream",
    "TensorRtBackend",
    "TensorSpec",
    "TlsOptions",
    "Traffic",
    "__version__",
    "available_cores",
    "callback_model",
    "decode_audio",
    "fbank",
    "histogram_bounds_ns",
    "plan_cores",
]

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
else:
    Array = Any  # a server without models starts without NumPy: a tenth of a second
