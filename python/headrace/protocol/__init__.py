"""The wire's messages, as protobuf classes.

    from headrace.protocol import health, kserve, model_config, riva_asr

    request = kserve.ModelMetadataRequest(name="digits")
    model_config.DataType.Value("TYPE_FP32")

A module a .proto file of `proto/headrace/`; its messages, enums and enum values are attributes,
made at first use. They live in a descriptor pool of their own, so they coexist with the stubs of
`tritonclient`, or any others of package `inference`, in one process; those messages are other
classes, and only bytes pass between the two.
"""

from __future__ import annotations

__all__ = ["health", "kserve", "model_config", "riva_asr", "riva_common"]
