"""EngineBuilds: engines that are built while something else serves, one at a time, each in a
process of its own.

    builds = EngineBuilds(EngineCache(folder), threads=1, changed=told)
    builds.start(job)               # waiting -> building -> ready, failed or cancelled
    builds.cancel(job)              # its version is unloaded
    builds.stop()

`changed(job, state, text)` is called by the builder's thread; what it does with a "ready" engine
(put it in service) is its business, and told by set_state(): "serving", or "failed".

Threads: every method from any thread.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from headrace.errors import HeadraceError, UnavailableError
from headrace.logs import get_logger
from headrace.optimize.build_process import spec_to_json
from headrace.optimize.engine_cache import EngineCache, engine_key
from headrace.optimize.engines import EngineSpec
from headrace.repository.digest import content_digest

__all__ = ["Device", "EngineBuilds", "EngineJob", "State", "key_of", "same_version"]

_log = get_logger("engines")

State = Literal["waiting", "building", "ready", "serving", "failed", "cancelled"]

_COMMAND = (sys.executable, "-m", "headrace.optimize.build_process")
_NICE = 10
# TensorRT tells its progress layer by layer; one takes seconds, on a loaded machine minutes.
_SILENCE_S = 3600.0
_STDERR_BYTES = 4000


@dataclass(frozen=True)
class Device:
    """What engines have to be of: runtime.TensorRtBackend.device()."""

    runtime: str  # "tensorrt", "tensorrt_rtx"
    version: str
    gpu: str
    compute_capability: str

    @property
    def name(self) -> str:
        return f"{self.gpu} {self.compute_capability}"


@dataclass(frozen=True)
class EngineJob:
    """An engine that a version is to run on."""

    model: str
    version: int
    onnx: Path
    spec: EngineSpec
    device: Device
    key: str  # in the cache

    def __str__(self) -> str:
        return f"model '{self.model}' version {self.version}"


Changed = Callable[[EngineJob, State, str], None]


@dataclass
class _Build:
    job: EngineJob
    state: State = "waiting"
    text: str = ""
    process: subprocess.Popen[bytes] | None = None
    ended: threading.Event = field(default_factory=threading.Event)


class EngineBuilds:
    def __init__(
        self,
        cache: EngineCache | None,
        *,
        threads: int,
        changed: Changed,
        command: Sequence[str] = (),
        silence_s: float = _SILENCE_S,
    ) -> None:
        """`cache` None: engines are kept for as long as this is. `threads`: that a build may
        use. `silence_s`: a builder that says nothing for so long is ended."""
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._given = cache
        self._threads = threads
        self._changed = changed
        self._command = list(command or _COMMAND)
        self._silence_s = silence_s
        self._lock = threading.Lock()
        self._builds: dict[tuple[str, int], _Build] = {}  # the last of each version; by _lock
        self._queue: deque[_Build] = deque()  # by _lock
        self._current: _Build | None = None  # by _lock
        self._fresh: set[str] = set()  # keys of engines that were built here; by _lock
        self._failures: dict[str, str] = {}  # what the builder said of a key; by _lock
        self._thread: threading.Thread | None = None
        self._stopping = False

    @property
    def cache(self) -> EngineCache:
        with self._lock:
            if self._given is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="headrace-engines-")
                self._given = EngineCache(Path(self._temporary.name))
            return self._given

    def start(self, job: EngineJob) -> None:
        """Instead of what is being built for this version."""
        build = _Build(job)
        with self._lock:
            if self._stopping:
                build.ended.set()
                return
            if (before := self._builds.get((job.model, job.version))) is not None:
                self._cancel(before)
            self._builds[job.model, job.version] = build
            self._queue.append(build)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="engines", daemon=True)
                self._thread.start()

    def cancel(self, job: EngineJob) -> None:
        """Does not wait for the process to end. What has ended stays as it is."""
        with self._lock:
            build = self._builds.get((job.model, job.version))
            if build is not None and build.job is job:
                self._cancel(build)

    @staticmethod
    def _cancel(build: _Build) -> None:
        """Under the lock."""
        if build.state in ("waiting", "building", "ready"):
            build.state = "cancelled"
            if build.process is not None:
                build.process.kill()

    def stop(self) -> None:
        """Waits until no process is left. Idempotent."""
        with self._lock:
            self._stopping = True
            while self._queue:
                self._queue.popleft().ended.set()
            if self._current is not None and self._current.process is not None:
                self._current.process.kill()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        if self._temporary is not None:
            self._temporary.cleanup()

    def set_state(self, job: EngineJob, state: State, text: str = "") -> None:
        with self._lock:
            build = self._builds.get((job.model, job.version))
            if build is not None and build.job is job and build.state != "cancelled":
                build.state, build.text = state, text

    def state(self, model: str, version: int) -> tuple[State, str] | None:
        with self._lock:
            build = self._builds.get((model, version))
            return (build.state, build.text) if build is not None else None

    def states(self) -> Mapping[tuple[str, int], State]:
        with self._lock:
            return {name: build.state for name, build in self._builds.items()}

    def failure(self, key: str) -> str:
        """What the builder said instead of building it: it would say it again. "" when it was not
        asked, or ended for another reason."""
        with self._lock:
            return self._failures.get(key, "")

    def built_here(self, key: str) -> bool:
        with self._lock:
            return key in self._fresh

    def wait(self, model: str, version: int, timeout_s: float | None = None) -> bool:
        """Until its process has ended; True if there is none."""
        with self._lock:
            build = self._builds.get((model, version))
        return build is None or build.ended.wait(timeout_s)

    # ---- the builder's thread -------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._lock:
                while self._queue and self._queue[0].state == "cancelled":
                    self._queue.popleft().ended.set()
                if not self._queue or self._stopping:
                    self._thread = None
                    return
                build = self._current = self._queue.popleft()
                self._set(build, "building", "")
            try:
                self._tell(build, "building", "")
                error = self._build(build)
            except HeadraceError as failed:
                error = failed.details
            except Exception as unexpected:
                _log.exception("%s: building its engine", build.job)
                error = f"{type(unexpected).__name__}: {unexpected}"
            with self._lock:
                build.process = self._current = None
                cancelled = build.state == "cancelled" or self._stopping
                if not cancelled:
                    self._set(build, "failed" if error else "ready", error)
                    if not error:
                        self._fresh.add(build.job.key)
            if not cancelled:
                self._tell(build, build.state, error)
            build.ended.set()

    @staticmethod
    def _set(build: _Build, state: State, text: str) -> None:
        build.state, build.text = state, text

    def _tell(self, build: _Build, state: State, text: str) -> None:
        try:
            self._changed(build.job, state, text)
        except Exception:
            _log.exception("%s: its engine is %s", build.job, state)

    def _build(self, build: _Build) -> str:
        """Why it failed; "" when the engine is in the cache."""
        job, device, cache = build.job, build.job.device, self.cache
        if cache.find(job.key) is not None:
            return ""
        with tempfile.TemporaryDirectory(prefix="headrace-engine-") as folder:
            plan = Path(folder) / "model.plan"
            request = {
                "onnx": str(job.onnx),
                "plan": str(plan),
                "runtime": device.runtime,
                "spec": spec_to_json(job.spec),
                "timing": str(cache.timing(device.runtime, device.version, device.name)),
                "threads": self._threads,
                "nice": _NICE,
            }
            cache.folder.mkdir(parents=True, exist_ok=True)
            with (Path(folder) / "stderr").open("w+b") as stderr:
                answer, status = self._ask(build, json.dumps(request), stderr)
                said = _last_words(stderr)
            if "error" in answer:
                return self._refused(build, str(answer["error"]))
            if status != 0 or "built" not in answer:
                return f"the builder ended with {_ending(status)}: {said}"
            about = answer["built"]
            if not same_version(str(about["version"]), device.version):
                return self._refused(
                    build,
                    f"{about['runtime']} {about['version']} builds for itself, and the server "
                    f"executes with {device.version}: install that version of it",
                )
            if job.key != key_of(job.onnx, job.spec, device):
                return "its file changed while its engine was built"
            cache.keep(
                job.key, plan.read_bytes(), {"model": job.model, "gpu": device.name, **about}
            )
        _log.info("%s: its engine was built in %.1f s", job, about["seconds"])
        return ""

    def _refused(self, build: _Build, text: str) -> str:
        with self._lock:
            if build.state != "cancelled" and not self._stopping:
                self._failures[build.job.key] = text
        return text

    def _ask(self, build: _Build, request: str, stderr: Any) -> tuple[dict[str, Any], int]:
        """The process's last word that is no progress, and its exit status."""
        answer: dict[str, Any] = {}
        with self._lock:
            if build.state == "cancelled" or self._stopping:
                return {"error": "cancelled"}, 1
            process = build.process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,  # Ctrl-C is the server's to hear
            )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(request.encode() + b"\n")
                process.stdin.flush()
            for line in _lines(process.stdout, self._silence_s):
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if not isinstance(event, dict):
                    continue
                if "progress" in event:
                    what, done, of = event["progress"]
                    with self._lock:
                        build.text = f"{what} {done}/{of}"
                else:
                    answer = event
            status = process.wait()
        except TimeoutError:
            text = f"the builder made no progress for {self._silence_s:g} s"
            raise UnavailableError(f"{text} and was ended") from None
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            with suppress(BrokenPipeError):
                process.stdin.close()
        return answer, status


def _lines(pipe: IO[bytes], silence_s: float) -> Iterator[bytes]:
    """Raises TimeoutError when nothing comes for so long."""
    rest = b""
    with selectors.DefaultSelector() as ready:
        ready.register(pipe, selectors.EVENT_READ)
        while True:
            if not ready.select(silence_s):
                raise TimeoutError
            chunk = os.read(pipe.fileno(), 1 << 16)
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
    if rest:
        yield rest


def key_of(onnx: Path, spec: EngineSpec, device: Device) -> str:
    """In the cache, of what the file is now."""
    return engine_key(content_digest(onnx), spec, device.runtime, device.version, device.name)


def _last_words(stderr: Any) -> str:
    size = stderr.seek(0, 2)
    stderr.seek(max(0, size - _STDERR_BYTES))
    lines = stderr.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _ending(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"


def same_version(builder: str, device: str) -> bool:
    """Whether the one's engines are executed by the other."""
    return builder.split(".")[:3] == device.split(".")[:3]
