"""The command line, against a real server in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

from headrace.app import Server
from headrace.cli import _apply_triton_compression, _apply_triton_tls, _translate, main
from headrace.config import ServerConfig
from headrace.errors import InvalidArgumentError


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    config = ServerConfig(host="127.0.0.1", grpc_port=0, metrics_port=-1, cache_dir="")
    with Server(config) as server:
        server.add_callable(
            "scale",
            lambda i: {"y": i["x"] * 2, "label": np.full((len(i["x"]), 1), b"caf\xc3\xa9", object)},
            {"x": ("FP32", [3])},
            {"y": ("FP32", [3]), "label": ("BYTES", [1])},
            max_batch_size=8,
        )
        server.add_callable(
            "upper",
            lambda i: {"out": np.array([t.upper() for t in i["text"]], object)},
            {"text": ("BYTES", [-1])},
            {"out": ("BYTES", [-1])},
        )
        yield server


@pytest.fixture
def run(server, capsys):
    def run(*arguments: str, status: int = 0, remote: bool = True) -> tuple[str, str]:
        extra = ["--url", server.address] if remote else []
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *extra])
        output = capsys.readouterr()
        assert (ended.value.code or 0) == status, output.err
        return output.out, output.err

    return run


def test_infer_prints_answers(run) -> None:
    out, _ = run("infer", "scale", "--input", "x=[1, 2.5, 3]")
    assert "y  FP32 [1, 3]" in out
    assert "5." in out
    assert "caf\u00e9" in out


def test_infer_as_json_and_chosen_outputs(run, tmp_path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 3), np.float32))
    out, _ = run("infer", "scale", "-i", f"x=@{tmp_path / 'x.npy'}", "--output", "y", "--json")
    assert json.loads(out) == {
        "y": {"datatype": "FP32", "shape": [2, 3], "data": [[2, 2, 2], [2, 2, 2]]}
    }


def test_infer_takes_text_and_files_for_strings(run, tmp_path) -> None:
    (tmp_path / "note.txt").write_bytes(b"from a file")
    for value, expected in (
        ("hello", ["HELLO"]),
        ('["a", "b=c"]', ["A", "B=C"]),
        (f"@{tmp_path / 'note.txt'}", ["FROM A FILE"]),
    ):
        out, _ = run("infer", "upper", "--input", f"text={value}", "--json")
        assert json.loads(out)["out"]["data"] == expected


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("nobody",), "NOT_FOUND: Request for unknown model: 'nobody' is not found"),
        (
            ("scale", "-i", "z=1"),
            "INVALID_ARGUMENT: model 'scale' has no input 'z'; it has x (FP32",
        ),
        (("scale", "-i", "x"), "INVALID_ARGUMENT: --input 'x' must be NAME=VALUE"),
        (("scale", "-i", "x=[1, 2]"), "INVALID_ARGUMENT: "),
        (("scale", "-i", "x=hello"), "INVALID_ARGUMENT: 'hello' is neither JSON nor @file"),
        (("scale", "-i", "x=@/no/such.npy"), "NOT_FOUND: /no/such.npy: No such file"),
        (("scale", "-i", 'x=["a", "b", "c"]'), "INVALID_ARGUMENT: "),
        (("scale", "-i", "x=[[1, 2], [3]]"), "INVALID_ARGUMENT: "),
        (("scale",), "INVALID_ARGUMENT: "),
    ],
)
def test_infer_errors_are_one_line(run, arguments: tuple[str, ...], text: str) -> None:
    _, err = run("infer", *arguments, status=1)
    assert err.startswith(text)
    assert "Traceback" not in err


def test_no_server(run) -> None:
    _, err = run("models", "--url", "127.0.0.1:1", status=1, remote=False)
    assert err.startswith("UNAVAILABLE: no server answers at 127.0.0.1:1")
    assert "headrace serve" in err


def test_models_table_and_json(run) -> None:
    run("infer", "scale", "--input", "x=[1, 2, 3]")
    out, _ = run("models")
    (line,) = [line for line in out.splitlines() if line.startswith("scale")]
    assert "READY" in line and "dynamic, up to 8" in line and "us" in line
    rows = json.loads(run("models", "--json")[0])
    scale = next(row for row in rows if row["name"] == "scale")
    assert (scale["version"], scale["state"], scale["instances"]) == ("1", "READY", 1)
    assert scale["requests"] >= 1
    assert scale["average_infer_us"] > 0


def test_doctor(run) -> None:
    out, _ = run("doctor", remote=False)
    assert "hardware" in out and "backends" in out and "openvino" in out
    document = json.loads(run("doctor", "--json", remote=False)[0])
    assert {f["section"] for f in document["findings"]} == {"hardware", "software", "backends"}


def test_version_and_help(run) -> None:
    assert run("--version", remote=False)[0].startswith("headrace ")
    assert "--model-store" in run("serve", "--help", remote=False)[0]


def test_serve_refuses_nonsense(run) -> None:
    _, err = run("serve", "--grpc-port", "70000", status=1, remote=False)
    assert err == "INVALID_ARGUMENT: --grpc-port is 70000; it must be 0 to 65535\n"
    _, err = run("serve", "--model-repository", "/no/such/folder", status=1, remote=False)
    assert err.startswith("NOT_FOUND: model repository '/no/such/folder' does not exist")


def test_tritons_spelling_of_switches() -> None:
    assert _translate(
        ["serve", "--strict-readiness=false", "--exit-on-error=TRUE", "--id=true"]
    ) == [*("serve", "--no-strict-readiness", "--exit-on-error", "--id=true")]


def test_tritons_level_of_compression() -> None:
    def applied(level: str | None, ours: str | None = None) -> object:
        values = {
            "grpc_infer_response_compression_level": level,
            "response_compression": ours,
        }
        _apply_triton_compression(values)
        assert list(values) == ["response_compression"]
        return values["response_compression"]

    assert applied(None) is None
    assert applied("none") == "none"
    assert [applied(level) for level in ("low", "medium", "high")] == ["gzip"] * 3
    assert applied("high", "deflate") == "deflate"
    with pytest.raises(InvalidArgumentError, match="must be one of none, low, medium, high"):
        applied("gzip")


def test_triton_switches_of_tls() -> None:
    def applied(**given: object) -> dict[str, object]:
        values: dict[str, object] = dict.fromkeys(
            ("grpc_use_ssl", "grpc_use_ssl_mutual", "tls_cert", "tls_key", "tls_client_ca")
            + ("tls_client_auth",)
        )
        values |= given
        _apply_triton_tls(values)
        return {name: value for name, value in values.items() if value is not None}

    pair = {"tls_cert": "c", "tls_key": "k"}
    assert applied(**pair) == pair
    assert applied(grpc_use_ssl=False, tls_client_ca="a", **pair) == {}
    assert applied(grpc_use_ssl=True, **pair) == pair | {"tls_client_auth": "none"}
    # Triton asks nobody for a certificate without the second switch, whatever the root.
    assert applied(grpc_use_ssl=True, tls_client_ca="a", **pair)["tls_client_auth"] == "none"
    assert applied(grpc_use_ssl_mutual=True, tls_client_ca="a", **pair)["tls_client_auth"] == (
        "require"
    )
    with pytest.raises(InvalidArgumentError, match="--grpc-server-cert"):
        applied(grpc_use_ssl=True)
    assert _translate(["--grpc-use-ssl=1", "--grpc-use-ssl-mutual=False"]) == [
        "--grpc-use-ssl",
        "--no-grpc-use-ssl-mutual",
    ]
