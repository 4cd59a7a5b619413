"""headrace.v1: the messages of Headrace's own administration.

Messages of proto/headrace/admin.proto; `admin.pyi` lists them.
"""

from headrace.protocol.descriptors import module_members

__getattr__, __dir__ = module_members(__name__, "headrace/admin.proto", globals())
