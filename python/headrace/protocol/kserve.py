"""KServe v2 and Triton's extensions: requests and responses of GRPCInferenceService.

Messages of proto/headrace/kserve.proto; `kserve.pyi` lists them.
"""

from headrace.protocol.descriptors import module_members

__getattr__, __dir__ = module_members(__name__, "headrace/kserve.proto", globals())
