"""ServerConfig: wrong values are named by flag; files and defaults combine."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.config import ServerConfig, read_config_file
from headrace.errors import HeadraceError


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"grpc_port": 65536}, "--grpc-port is 65536; it must be 0 to 65535"),
        ({"metrics_port": -2}, "--metrics-port"),
        ({"grpc_port": 9000, "metrics_port": 9000}, "are both 9000"),
        ({"model_control_mode": "sometimes"}, "none, explicit, poll"),
        ({"log_format": "xml"}, "--log-format is 'xml'; it must be one of text, json"),
        ({"onnx_engine": "tvm"}, "--onnx-engine"),
        ({"repository_poll_secs": 0}, "--repository-poll-secs"),
        ({"exit_timeout_secs": float("nan")}, "--exit-timeout-secs"),
        ({"load_model": ("a",)}, "--model-control-mode explicit"),
        ({"model_control_mode": "explicit", "load_model": ("*", "a")}, "--load-model '*'"),
        ({"model_repository": (Path("/nowhere/at/all"),)}, "'/nowhere/at/all' does not exist"),
        ({"max_message_bytes": 2**31}, "--max-message-bytes"),
    ],
)
def test_wrong_values_name_the_flag(values, text: str) -> None:
    with pytest.raises(HeadraceError) as caught:
        ServerConfig(**values)
    assert text in caught.value.details


def test_a_repository_must_be_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(HeadraceError, match="is not a folder"):
        ServerConfig(model_repository=(file,))


def test_two_servers_on_any_free_port() -> None:
    assert ServerConfig(grpc_port=0, metrics_port=0).metrics_enabled
    assert not ServerConfig(metrics_port=-1).metrics_enabled


def test_a_file_gives_any_flag_under_either_spelling(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    path = tmp_path / "headrace.yaml"
    path.write_text(
        "model-repository: models\ngrpc_port: 9001\nmodel-control-mode: explicit\n"
        "load-model: [a, b]\nstrict-readiness: false\n"
    )
    values = read_config_file(path)
    config = ServerConfig(**values)
    assert config.model_repository == (tmp_path / "models",), "relative to the file"
    assert (config.grpc_port, config.metrics_port) == (9001, 8002)
    assert config.load_model == ("a", "b")
    assert config.strict_readiness is False
    assert set(values) == {
        *("model_repository", "grpc_port", "model_control_mode", "load_model", "strict_readiness")
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grpc-prot: 1", "unknown key 'grpc_prot'"),
        ("grpc-port: many", "grpc_port: Input should be a valid integer"),
        ("grpc-port: 70000", "--grpc-port is 70000"),
        ("- a\n- b", "expected `flag: value` lines"),
        ("a: [", "not valid YAML"),
        ("model-control-mode: maybe", "model_control_mode"),
    ],
)
def test_mistakes_in_a_file_name_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "headrace.yaml"
    path.write_text(text)
    with pytest.raises(HeadraceError) as caught:
        read_config_file(path)
    assert caught.value.details.startswith(str(path))
    assert message in caught.value.details


def test_an_empty_file_is_all_defaults_and_a_missing_one_an_error(tmp_path: Path) -> None:
    path = tmp_path / "headrace.yaml"
    path.touch()
    assert read_config_file(path) == {}
    with pytest.raises(HeadraceError, match="No such file"):
        read_config_file(tmp_path / "gone.yaml")


def test_tls_options_belong_together(tmp_path: Path) -> None:
    cert = str(tmp_path / "cert.pem")
    Path(cert).write_text("")
    for values, reason in (
        ({"tls_cert": cert}, "--tls-cert needs --tls-key"),
        ({"tls_key": cert}, "--tls-key needs --tls-cert"),
        ({"tls_client_ca": cert}, "--tls-client-ca needs --tls-cert and --tls-key"),
        (
            {"tls_cert": cert, "tls_key": cert, "tls_client_auth": "request"},
            "--tls-client-auth request needs --tls-client-ca",
        ),
        ({"tls_client_auth": "often"}, "--tls-client-auth is 'often'"),
        ({"tls_reload_secs": -1.0}, "--tls-reload-secs must not be negative"),
        ({"unix_socket_mode": "0999"}, "--unix-socket-mode is '0999'"),
        ({"unix_socket_mode": "1777"}, "--unix-socket-mode is '1777'"),
        ({"tls_cert": cert, "tls_key": "/nonexistent"}, "--tls-key '/nonexistent' is not a file"),
    ):
        with pytest.raises(HeadraceError) as error:
            ServerConfig(**values)  # type: ignore[arg-type]
        assert reason in error.value.details
    plain = ServerConfig(tls_cert=cert, tls_key=cert)
    assert plain.client_auth == "none"
    assert plain.tls_files == (Path(cert), Path(cert))
    assert ServerConfig(tls_cert=cert, tls_key=cert, tls_client_ca=cert).client_auth == "require"
    assert ServerConfig().tls_files == ()
