"""ModelConfig and what it is made of: the schema of config.pbtxt.

Messages of proto/headrace/model_config.proto; `model_config.pyi` lists them.
"""

from headrace.protocol.descriptors import module_members

__getattr__, __dir__ = module_members(__name__, "headrace/model_config.proto", globals())
