"""Riva speech recognition: requests and responses of RivaSpeechRecognition.

Messages of proto/headrace/riva_asr.proto; `riva_asr.pyi` lists them.
"""

from headrace.protocol.descriptors import module_members

__getattr__, __dir__ = module_members(__name__, "headrace/riva_asr.proto", globals())
