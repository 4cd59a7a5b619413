"""grpc.health.v1: HealthCheckRequest and HealthCheckResponse.

Messages of proto/headrace/health.proto; `health.pyi` lists them.
"""

from headrace.protocol.descriptors import module_members

__getattr__, __dir__ = module_members(__name__, "headrace/health.proto", globals())
