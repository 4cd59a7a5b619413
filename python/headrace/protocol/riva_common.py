"""What Riva's services have in common.

Messages of proto/headrace/riva_common.proto; `riva_common.pyi` lists them.
"""

from headrace.protocol.descriptors import module_members

__getattr__, __dir__ = module_members(__name__, "headrace/riva_common.proto", globals())
