"""ServerConfig: everything `headrace serve` can be told, validated whole before anything starts.

Flags and an optional YAML file (`--config headrace.yaml`; keys are the flags' names) map onto it.
A flag wins over the file, the file over the default.

    config = ServerConfig(model_repository=(Path("models"),), grpc_port=0)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from headrace.errors import InvalidArgumentError, NotFoundError
from headrace.limits import ConnectionLimits, limits_from_mapping

__all__ = [
    "ClientAuth",
    "ControlMode",
    "LogFormat",
    "LogLevel",
    "OnnxEngine",
    "ResponseCompression",
    "ServerConfig",
    "read_config_file",
]

ControlMode = Literal["none", "explicit", "poll"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
ClientAuth = Literal["auto", "none", "request", "require"]
OnnxEngine = Literal["auto", "openvino", "onnxruntime"]
ResponseCompression = Literal["none", "gzip", "deflate"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "model_control_mode": ("none", "explicit", "poll"),
    "log_format": ("text", "json"),
    "log_level": ("debug", "info", "warning", "error"),
    "onnx_engine": ("auto", "openvino", "onnxruntime"),
    "tls_client_auth": ("auto", "none", "request", "require"),
    "response_compression": ("none", "gzip", "deflate"),
}


def _default_cache_dir() -> str:
    base = os.environ.get("XDG_CACHE_HOME")
    return str((Path(base) if base else Path("~/.cache").expanduser()) / "headrace")


@dataclass(frozen=True)
class ServerConfig:
    """Frozen. Raises InvalidArgumentError naming the flag when a value makes no sense."""

    # Unknown keys of a configuration file are errors.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    model_repository: tuple[Path, ...] = ()
    model_control_mode: ControlMode = "none"
    load_model: tuple[str, ...] = ()  # explicit mode: what to load at start; "*" = everything
    repository_poll_secs: float = 15.0  # poll mode: how often the repositories are looked at

    host: str = "0.0.0.0"
    grpc_port: int = 8001  # 0 = any free one
    # Instead of host and grpc_port: "host:port", "unix:/path", "unix-abstract:name". TCP with TLS
    # when there is a certificate; unix sockets and listen_insecure always without.
    listen: tuple[str, ...] = ()
    listen_insecure: tuple[str, ...] = ()
    unix_socket_mode: str = "0600"  # octal permissions
    # The unix socket of the admin service (rollouts), for this user alone; "auto" = one named after
    # the gRPC port in $XDG_RUNTIME_DIR/headrace or /tmp/headrace-UID; "" = none.
    admin_socket: str = "auto"
    # The admin service over TCP, "host:port": with TLS and auth_file, never without.
    admin_listen: str = ""
    tls_cert: str = ""  # PEM: the certificate, then the intermediate ones
    tls_key: str = ""  # PEM, not encrypted
    tls_client_ca: str = ""  # PEM: who signs clients' certificates; may hold revocation lists
    tls_client_auth: ClientAuth = "auto"  # auto: require with tls_client_ca, else none
    tls_reload_secs: float = 10.0  # how often the files are looked at; 0 = only on SIGHUP
    metrics_port: int = 8002  # 0 = any free one, -1 = no metrics
    dashboard: bool = True  # the page beside the metrics
    otlp_endpoint: str = ""  # where traces go: "http://host:4317"; "" = nothing is traced
    # Of the requests without a traceparent, by a hash of their id; a traceparent decides by itself.
    trace_ratio: float = 0.01
    io_threads: int = 0  # threads that own connections; 0 = planned from the cores
    # How long an I/O thread that has nothing to do may look for the next call before it sleeps,
    # where most calls follow that soon. 0, or a single core: it sleeps at once.
    busy_poll_us: int = 100
    cores: int = 0  # cores to divide over model instances; 0 = all this process may use
    # Cores that loads may use, one each, while models are served; 0 = a quarter of the cores.
    load_threads: int = 0
    max_message_bytes: int = 0  # 0 = 2 GiB - 1 for ModelInfer, 4 MiB for other methods
    response_compression: ResponseCompression = "none"  # for clients that accept it
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    service_threads: int = 32  # for the handlers of gRPC services of your own, and reflection
    reflection: bool = True  # server reflection, where grpcio-reflection is installed
    id: str = "headrace"  # the name in ServerMetadata
    auth_file: str = ""  # who may call what (access.py); "" = everyone everything

    default_max_batch_size: int = (
        32  # for models that can batch and whose configuration says nothing
    )
    onnx_engine: OnnxEngine = "auto"
    # What must survive a restart (rollouts); "auto" = a folder of this server's repositories and
    # port in $XDG_STATE_HOME/headrace; "" = nothing does.
    state_dir: str = "auto"
    cache_dir: str = field(default_factory=_default_cache_dir)  # compiled models; "" = none
    # Of questions and answers, for all models that ask for it; taken as they come. 0 = no cache.
    response_cache_byte_size: int = 64 << 20
    tickets: Path | None = None  # SQLite file for what models leave to people
    tickets_keep_days: float = 30.0  # resolved ones; 0 = for ever

    strict_readiness: bool = True
    exit_on_error: bool = True  # a model that does not load at start ends the server
    exit_timeout_secs: float = 30.0  # how long running requests may take when it is stopped

    log_format: LogFormat = "text"
    log_level: LogLevel = "info"

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise InvalidArgumentError(
                    f"{flag(name)} is '{value}'; it must be one of {', '.join(allowed)}"
                )
        _check_range("grpc_port", self.grpc_port, 0, 65535)
        _check_range("metrics_port", self.metrics_port, -1, 65535)
        _check_range("io_threads", self.io_threads, 0, 1024)
        _check_range("busy_poll_us", self.busy_poll_us, 0, 10_000)
        _check_range("cores", self.cores, 0, 4096)
        _check_range("load_threads", self.load_threads, 0, 4096)
        _check_range("service_threads", self.service_threads, 1, 1000)
        _check_range("max_message_bytes", self.max_message_bytes, 0, 2**31 - 1)
        _check_range("response_cache_byte_size", self.response_cache_byte_size, 0, 2**40)
        if not 0 <= self.tickets_keep_days <= 36500:
            raise InvalidArgumentError("--tickets-keep-days must be 0 to 36500")
        _check_range("default_max_batch_size", self.default_max_batch_size, 0, 2**20)
        if self.grpc_port != 0 and self.grpc_port == self.metrics_port:
            raise InvalidArgumentError(
                f"--grpc-port and --metrics-port are both {self.grpc_port}; give them different "
                "ports"
            )
        self._check_tls()
        self._check_admin()
        if not 0 <= self.trace_ratio <= 1:
            raise InvalidArgumentError("--trace-ratio must be 0 to 1")
        if not self.repository_poll_secs > 0:
            raise InvalidArgumentError("--repository-poll-secs must be more than 0")
        if not self.exit_timeout_secs >= 0:
            raise InvalidArgumentError("--exit-timeout-secs must not be negative")
        if self.load_model and self.model_control_mode != "explicit":
            raise InvalidArgumentError(
                "--load-model needs --model-control-mode explicit; in the other modes every "
                "model of "
                "the repository is loaded"
            )
        if "*" in self.load_model and len(self.load_model) > 1:
            raise InvalidArgumentError(
                "--load-model '*' loads every model; leave out the other --load-model"
            )
        for repository in self.model_repository:
            if not repository.exists():
                raise NotFoundError(
                    f"model repository '{repository}' does not exist; create it or correct "
                    "--model-repository"
                )
            if not repository.is_dir():
                raise InvalidArgumentError(f"model repository '{repository}' is not a folder")

    def _check_tls(self) -> None:
        try:
            mode = int(self.unix_socket_mode, 8)
        except ValueError:
            mode = -1
        if not 0 <= mode <= 0o777:
            raise InvalidArgumentError(
                f"--unix-socket-mode is '{self.unix_socket_mode}'; it must be octal permissions, "
                "0 to 0777"
            )
        if not self.tls_reload_secs >= 0:
            raise InvalidArgumentError("--tls-reload-secs must not be negative")
        if bool(self.tls_cert) != bool(self.tls_key):
            given, missing = (
                ("--tls-cert", "--tls-key") if self.tls_cert else ("--tls-key", "--tls-cert")
            )
            raise InvalidArgumentError(f"{given} needs {missing}")
        if self.tls_client_ca and not self.tls_cert:
            raise InvalidArgumentError("--tls-client-ca needs --tls-cert and --tls-key")
        if self.client_auth != "none" and not self.tls_client_ca:
            raise InvalidArgumentError(
                f"--tls-client-auth {self.tls_client_auth} needs --tls-client-ca"
            )
        for name in ("tls_cert", "tls_key", "tls_client_ca"):
            path = getattr(self, name)
            if path and not Path(path).is_file():
                raise NotFoundError(f"{flag(name)} '{path}' is not a file")

    def _check_admin(self) -> None:
        if not self.admin_listen:
            return
        host, _, port = self.admin_listen.rpartition(":")
        if not host or not port.isdecimal() or self.admin_listen.startswith("unix"):
            raise InvalidArgumentError(
                f"--admin-listen is '{self.admin_listen}'; it must be host:port "
                "(a unix socket: --admin-socket)"
            )
        if not self.tls_cert:
            raise InvalidArgumentError("--admin-listen needs TLS: --tls-cert and --tls-key")
        if not self.auth_file:
            raise InvalidArgumentError(
                "--admin-listen needs --auth-file: without it everyone may do everything"
            )

    @property
    def client_auth(self) -> Literal["none", "request", "require"]:
        """What is asked of TLS clients."""
        if self.tls_client_auth != "auto":
            return self.tls_client_auth
        return "require" if self.tls_client_ca else "none"

    @property
    def tls_files(self) -> tuple[Path, ...]:
        """The files that TLS reads; none without TLS."""
        used = [self.tls_cert, self.tls_key]
        if self.client_auth != "none":
            used.append(self.tls_client_ca)
        return tuple(Path(path) for path in used if path)

    @property
    def state_path(self) -> Path | None:
        """Made when there is something to keep. None: nothing is kept."""
        if self.state_dir != "auto":
            return Path(self.state_dir) if self.state_dir else None
        if not self.model_repository:
            return None
        base = os.environ.get("XDG_STATE_HOME")
        names = [os.path.realpath(path) for path in self.model_repository]
        digest = hashlib.blake2b("\0".join(names).encode(), digest_size=6).hexdigest()
        home = Path(base) if base else Path("~/.local/state").expanduser()
        return home / "headrace" / f"{digest}-{self.grpc_port}"

    @property
    def metrics_enabled(self) -> bool:
        return self.metrics_port >= 0

    @property
    def load_everything(self) -> bool:
        """Whether every model of the repositories is to be loaded at start."""
        return self.model_control_mode != "explicit" or "*" in self.load_model


def flag(name: str) -> str:
    """`grpc_port` -> "--grpc-port"."""
    return "--" + name.replace("_", "-")


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidArgumentError(f"{flag(name)} is {value}; it must be {low} to {high}")


def read_config_file(path: Path) -> dict[str, Any]:
    """The keyword arguments for ServerConfig that a YAML file gives.

    Keys are flag names ("grpc-port") or field names ("grpc_port"). Relative repositories and TLS
    files are relative to the file. Errors name the file and the key.
    """
    try:
        import yaml  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise InvalidArgumentError(
            f"reading {path} needs PyYAML, which is not installed: pip install pyyaml"
        ) from error
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{path}: not UTF-8 text") from error
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{path}: not valid YAML: {error}") from error
    if document is None:
        return {}
    if not isinstance(document, Mapping):
        raise InvalidArgumentError(
            f"{path}: expected `flag: value` lines, found {type(document).__name__}"
        )
    values = {str(key).replace("-", "_"): value for key, value in document.items()}
    if isinstance(values.get("model_repository"), str):
        values["model_repository"] = [values["model_repository"]]
    for name in ("load_model", "listen", "listen_insecure"):
        if isinstance(values.get(name), str):
            values[name] = [values[name]]
    if isinstance(values.get("limits"), Mapping):
        try:
            values["limits"] = limits_from_mapping(values["limits"])
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{path}: {error.details}") from error
    return _validated(path, values)


def _validated(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    import pydantic

    known = {f.name for f in fields(ServerConfig)}
    for name in values:
        if name not in known:
            raise InvalidArgumentError(
                f"{path}: unknown key '{name}'; known: {', '.join(sorted(known))}"
            )
    if isinstance(values.get("auth_file"), str) and values["auth_file"]:
        values["auth_file"] = str(path.parent / values["auth_file"])
    if isinstance(values.get("model_repository"), list):
        values["model_repository"] = [path.parent / str(p) for p in values["model_repository"]]
    for name in ("tls_cert", "tls_key", "tls_client_ca"):
        if isinstance(values.get(name), str) and values[name]:
            values[name] = str(path.parent / values[name])
    try:
        config = pydantic.TypeAdapter(ServerConfig).validate_python(values)
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise InvalidArgumentError(f"{path}: {where}: {problem['msg']}") from error
    except (InvalidArgumentError, NotFoundError) as error:
        raise type(error)(f"{path}: {error.details}") from error
    return {name: getattr(config, name) for name in values}
