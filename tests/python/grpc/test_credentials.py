from __future__ import annotations

import grpc
import pytest

import headrace.grpc
from headrace.grpc.credentials import credentials_of

PAIR = (b"the key", b"the chain")


def test_arguments_are_grpcios() -> None:
    credentials = headrace.grpc.ssl_server_credentials([PAIR], b"roots", True)
    assert (credentials.private_key, credentials.certificate_chain) == PAIR
    assert credentials.root_certificates == b"roots" and credentials.require_client_auth
    assert credentials_of(credentials) is credentials
    assert "the key" not in repr(credentials)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="At least one"):
        headrace.grpc.ssl_server_credentials([])
    with pytest.raises(ValueError, match="without providing root certificates"):
        headrace.grpc.ssl_server_credentials([PAIR], None, True)
    with pytest.raises(ValueError, match="one certificate"):
        headrace.grpc.ssl_server_credentials([PAIR, PAIR])
    with pytest.raises(TypeError, match=r"headrace\.grpc\.ssl_server_credentials"):
        credentials_of(grpc.ssl_server_credentials([PAIR]))
    with pytest.raises(TypeError, match="not str"):
        credentials_of("a certificate")
