"""Client: KServe v2 over grpcio, for the command line and for people."""

from headrace.client.client import Client

__all__ = ["Client"]
