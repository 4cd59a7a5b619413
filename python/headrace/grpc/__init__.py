"""A drop-in grpc.Server (and grpc.aio's) on Headrace's core; see server.py."""

from headrace.grpc import aio
from headrace.grpc.credentials import ServerCredentials, ssl_server_credentials
from headrace.grpc.server import Server, server

__all__ = ["Server", "ServerCredentials", "aio", "server", "ssl_server_credentials"]
