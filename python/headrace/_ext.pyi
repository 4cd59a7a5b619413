"""The C++ core, as Python sees it. `runtime.py` is the only module that imports it.

Every failure raises `headrace.errors.HeadraceError` (a leaf a gRPC status code), made by the
binding from the core's Status. Waits release the GIL. Datatype strings are KServe's ("FP32",
"BYTES").

NumPy arrays stand for tensors: dense dtypes as usual, C-contiguous; BYTES as object arrays of
`bytes` (`str` is accepted on the way in and encoded as UTF-8); BF16 as uint16 bit patterns
(NumPy has no bfloat16)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import numpy.typing as npt

Array = npt.NDArray[Any]

__version__: str

@final
class TensorSpec:
    def __init__(
        self,
        name: str,
        datatype: str,
        dims: Sequence[int],
        *,
        optional: bool = False,
        labels: Sequence[str] = (),
        reshape: Sequence[int] | None = None,
    ) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def dims(self) -> list[int]: ...
    @property
    def optional(self) -> bool: ...

@final
class ModelSpec:
    """What clients see. `dims` exclude the batch dimension when max_batch_size > 0."""

    def __init__(
        self,
        name: str,
        version: int,
        max_batch_size: int,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
    ) -> None: ...

@final
class QueuePolicy:
    """config.pbtxt ModelQueuePolicy; `timeout_action` is "REJECT" or "DELAY"."""

    def __init__(
        self,
        *,
        timeout_action: str = "REJECT",
        default_timeout_us: int = 0,
        allow_timeout_override: bool = False,
        max_queue_size: int = 0,
    ) -> None: ...

@final
class BatchPolicy:
    def __init__(
        self,
        *,
        max_rows: int = 1,
        preferred_batch_size: Sequence[int] = (),
        max_queue_delay_us: int = 0,
        preserve_ordering: bool = False,
        priority_levels: int = 0,
        default_priority_level: int = 0,
        default_queue_policy: QueuePolicy | None = None,
        priority_queue_policy: Mapping[int, QueuePolicy] = {},
        latency_budget_us: int = 0,
    ) -> None:
        """latency_budget_us: of an SLO, 0 for none: batch sizes and delays then follow from what
        batches of this model cost."""

@final
class AdmissionPolicy:
    def __init__(
        self,
        *,
        by_deadline: bool = True,
        by_budget: bool = True,
        queue_target_us: int = 0,
        queue_interval_us: int = 100000,
        adaptive_concurrency: bool = False,
    ) -> None:
        """Which requests are refused because they would be late: for their deadline, for the
        latency budget, or (queue_target_us > 0) by CoDel when they have neither; and, with
        adaptive_concurrency, because more are in flight than their latency allows."""

@final
class HealthPolicy:
    """How many batches in a row an instance may fail before it is probed (0: any number), how far
    apart its rebuilds are, at first and at most, and after how long without anything to do it is
    probed (0: never)."""

    def __init__(
        self,
        *,
        failures: int = 5,
        backoff_s: float = 1.0,
        backoff_max_s: float = 60.0,
        probe_s: float = 0.0,
    ) -> None: ...

@final
class Model:
    """A loaded artifact of a backend. Signature with the batch dimension, -1 = dynamic."""

    @property
    def inputs(self) -> list[TensorSpec]: ...
    @property
    def outputs(self) -> list[TensorSpec]: ...
    @property
    def description(self) -> str: ...

@final
class ResponseCache:
    """Answers kept in memory, for all models that use it. `capacity` in bytes."""

    def __init__(self, capacity: int) -> None: ...
    @property
    def capacity(self) -> int: ...
    def statistics(self) -> dict[str, int]:
        """entries, bytes, evictions."""

class OpenVinoBackend:
    def __init__(self) -> None: ...
    @staticmethod
    def version() -> str: ...
    def devices(self) -> list[str]: ...
    def inspect(
        self, path: str, *, low_priority: bool = False
    ) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """Inputs and outputs of an ONNX or IR file, without compiling it."""

    def load(
        self,
        path: str,
        *,
        device: str = "CPU",
        instances: int = 1,
        threads: int = 1,
        cache_dir: str = "",
        low_priority: bool = False,
        trusted_shapes: bool = False,
        int8: str = "exact",
        properties: Mapping[str, str] = {},
    ) -> Model:
        """`low_priority`: the work leaves the processors to whoever serves. `trusted_shapes`:
        shapes come from our own code, not inferred through the graph first. `int8`: "off", "exact",
        "dynamic" or "auto": which linear layers run on our INT8 kernels."""

class TensorRtBackend:
    """Engines of TensorRT, through a library of its own."""

    def __init__(self, library: str = "libheadrace_tensorrt.so") -> None: ...
    def device(self) -> dict[str, str]:
        """runtime: "tensorrt" or "tensorrt_rtx"; version, gpu, compute_capability ("9.0"): what
        engines have to be of. Raises UnavailableError naming what is missing."""

    def load(self, path: str, *, graphs: bool = True, device_memory_limit: int = 0) -> Model:
        """`device_memory_limit`: bytes of all instances together, 0: none."""

@final
class SpeechStream:
    """A stream of audio that is becoming text. One thread at a time, but for `next`."""

    def push(self, samples: Array) -> None:
        """float32 in [-1, 1], 16 kHz, of any length."""

    @property
    def backlog_full(self) -> bool: ...
    def force_end_of_utterance(self) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None:
        """Cancels what is not done. The answers so far can still be had."""

    def next(self, timeout_s: float = 60.0) -> dict[str, Any] | None:
        """The next result (SpeechResult's fields). None: none came in time, or the stream has
        `ended`; raises when it ended with an error."""

    @property
    def ended(self) -> bool:
        """No further result will come, and none is left."""

@final
class SpeechRecognizer:
    def __init__(
        self,
        *,
        name: str,
        language_code: str,
        parameters: Mapping[str, str],
        encoder: Model,
        decoder: Model,
        vad: Model,
        tokens: str,
        prompt: Sequence[int],
        eos: int,
        max_tokens_per_second: float,
        min_context_s: float,
        suppressed: Sequence[int] = (),
        suppressed_first: Sequence[int] = (),
        threads: int = 1,
        max_streams: int = 1024,
        max_batch: int = 4,
        max_wait_ms: int = 1000,
        low_priority: bool = False,
    ) -> None:
        """Blocks until all threads are warm; `low_priority`: that leaves the processors to whoever
        serves. `tokens` is a file. The networks' names and shapes:
        csrc/speech/segment_network.h."""

    @staticmethod
    def streaming(
        *,
        name: str,
        language_code: str,
        parameters: Mapping[str, str],
        encoder: Model,
        decoder: Model | None = None,
        joiner: Model | None = None,
        tokens: str,
        blank: int = 0,
        unknown: int = -1,
        features: str = "kaldi",
        chunk_frames: int,
        shift_frames: int,
        caches: Mapping[str, Sequence[int]] = {},
        paths: int = 1,
        stop_ms: int = 320,
        tail_ms: int = 800,
        threads: int = 1,
        max_streams: int = 1024,
        max_batch: int = 8,
        max_wait_ms: int = 1000,
        low_priority: bool = False,
    ) -> SpeechRecognizer:
        """A transducer, or without `decoder` and `joiner` a CTC network. Names and shapes:
        csrc/speech/streaming_network.h, transducer_decoder.h; `features`: "kaldi", "nemo" or
        "librosa" (csrc/speech/fbank.h)."""

    @property
    def info(self) -> dict[str, Any]:
        """name, language_code, offline, streaming, parameters."""

    def statistics(self) -> dict[str, Any]:
        """SpeechStatistics's fields; histograms as {buckets, count, sum}, in ns."""

    def open(
        self,
        *,
        interim_results: bool = False,
        word_times: bool = False,
        offline: bool = False,
        stop_history_ms: int = 0,
        stop_history_eou_ms: int = 0,
        phrases: Sequence[tuple[str, float]] = (),
    ) -> SpeechStream:
        """`phrases`: texts to prefer, each with its boost."""

def fbank(samples: Array, *, kind: str = "kaldi", bands: int = 80) -> Array:
    """Log-mel features (frames, bands) of 16 kHz samples (csrc/speech/fbank.h)."""

@final
class Int8Linear:
    """A linear layer on the CPU's INT8 kernels (csrc/kernels/int8_linear.h). Immutable."""

    def __init__(
        self, weights: Array, bias: Array | None = None, *, activation: str = "none"
    ) -> None:
        """`weights` (outputs, inputs) float32; none, relu, gelu, gelu_tanh, silu, sigmoid or
        tanh."""

    @staticmethod
    def from_quantized(
        weights: Array, scales: Array, bias: Array | None = None, *, activation: str = "none"
    ) -> Int8Linear:
        """`weights` int8 (outputs, inputs), `scales` one an output."""

    def run(self, x: Array) -> Array:
        """x (rows, inputs) -> (rows, outputs) float32. Releases the GIL."""

    @property
    def inputs(self) -> int: ...
    @property
    def outputs(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def memory_bytes(self) -> int: ...

@final
class SpeechServable(Servable):
    """A speech model as KServe's RPCs see it: ready, and answers ModelInfer with UNIMPLEMENTED."""

    def __init__(self, model: str, version: int) -> None: ...

def decode_audio(
    audio: bytes,
    *,
    encoding: int = 0,
    sample_rate: int = 0,
    channels: int = 1,
    separate_channels: bool = False,
    max_seconds: float = 14400.0,
) -> list[Array]:
    """A recording as Riva's service hears it: float32, 16 kHz, an array a channel (or the first
    only; none if it is empty). `encoding`: AudioEncoding of riva_common.proto; like the rate and
    the channels it is for audio without a header (WAV, FLAC, Ogg Opus)."""

def callback_model(
    callables: Sequence[Callable[[dict[str, Array]], Mapping[str, Array]]],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    description: str = "Python callable",
    remake: Callable[[int], Callable[[dict[str, Array]], Mapping[str, Array]]] | None = None,
) -> Model:
    """A model of as many instances as there are callables, each called with {input name: array}
    (batch dimension first; a left-out optional input is missing) and answering {output name:
    array}. What it raises becomes INTERNAL for the requests of that batch. `remake` makes the
    callable with that number anew, for an instance in the place of a sick one, on its thread;
    without it the same callable goes on."""

class Servable:
    """What answers requests; composed here, executed by the core."""

    @property
    def ready(self) -> bool:
        """Whether requests have a chance; False while every instance is being rebuilt."""

@final
class CachedServable(Servable):
    """A servable with a cache in front of it: a question is asked once.

    ttl_s: how long an answer is good, 0 = always. While less than the share `bypass_below` of the
    look-ups finds an answer, most requests do not look."""

    def __init__(
        self,
        cache: ResponseCache,
        servable: Servable,
        *,
        ttl_s: float = 0.0,
        bypass_below: float = 0.0,
    ) -> None: ...
    def statistics(self) -> dict[str, int]:
        """hits, hit_ns (arrival to answer), misses, miss_ns (looking up and keeping), bypassed,
        bypassing (0 or 1)."""

@final
class ModelVersion(Servable):
    """A loaded version: signature, queue, instances. Life: warm_up -> start -> close."""

    def __init__(
        self,
        spec: ModelSpec,
        model: Model,
        *,
        policy: BatchPolicy,
        instances: int,
        admission: AdmissionPolicy = ...,
        health: HealthPolicy = ...,
        on_instance_event: Callable[[str, int, int, str], None] | None = None,
    ) -> None:
        """`on_instance_event(kind, instance, instances in service, reason)` is called by instance
        threads: "quarantined", "rebuild failed", "returned"."""

    def warm_up(self, inputs: Mapping[str, Array], *, low_priority: bool = False) -> None:
        """Runs once on every instance, before start(). Arrays carry the batch dimension. The
        smallest that succeed are what sick instances are probed with; without any, zeros.
        `low_priority` holds for models that run without the interpreter."""

    def start(self) -> None: ...
    def infer(
        self,
        inputs: Mapping[str, Array],
        *,
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> dict[str, Array]:
        """One request from this process, through the queue and the batcher like any other."""

    def require_finite_outputs(self, required: bool) -> None:
        """Whether an answer with a NaN or an infinity in it fails (INTERNAL), from now on."""

    def close(self, *, drain: bool = True, timeout_s: float | None = None) -> bool:
        """Ends it: what is queued is served (drain) or refused. True if all was served in time."""

    @property
    def description(self) -> str: ...
    @property
    def instances(self) -> int: ...
    @property
    def pending(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def health(self) -> dict[str, Any]:
        """instances, in_service, quarantines (since creation): int; fault: of the last that left
        service or could not be rebuilt, "" while all serve."""

    def statistics(self) -> dict[str, Any]:
        """Counters since creation:
        last_inference_ms, inference_count, execution_count: int
        success, fail, queue, compute_input, compute_infer, compute_output: (count, ns)
        failures: {"REJECTED" | "CANCELED" | "BACKEND" | "OTHER": int}
        batches: {batch size: (executions, input ns, infer ns, output ns)}
        request_ns, queue_ns, infer_ns: {"count": int, "sum": ns, "buckets": [int, ...]} with the
        bucket bounds of histogram_bounds_ns()
        slo: (requests, good) of the latency budget
        admission: {"refused": {"deadline" | "slo" | "queue" | "concurrency": int},
        "concurrency_limit": 0 for none, "estimated_wait_ns": of a
        request of the lowest priority, "correction": of estimates, "batches": seen by the cost
        model, "batch_fixed_ns", "batch_row_ns": what it says a batch costs, "batch_p95_ns": of one
        of "batch_limit" rows, the most}
        health: as the property"""

@final
class Link:
    """A servable that changes, or is not there for a while: where a fallback leads."""

    def __init__(self) -> None: ...
    def point_to(self, servable: Servable | None) -> None: ...

@final
class Guarded(Servable):
    """A servable behind a circuit breaker."""

    def __init__(
        self,
        servable: Servable,
        *,
        failure_rate: float = 0.5,
        min_requests: int = 20,
        consecutive: int = 0,
        window_s: float = 10.0,
        open_s: float = 5.0,
        open_max_s: float = 60.0,
        probes: int = 3,
    ) -> None:
        """Opens when `failure_rate` of at least `min_requests` of the last `window_s` failed, or
        `consecutive` in a row (0: does not count); for open_s, twice as long each time the
        `probes` requests that it lets through then do not all succeed."""

    @property
    def state(self) -> str:
        """ "closed", "open" or "half_open"."""

    @property
    def refused(self) -> int: ...
    def changes(self) -> dict[str, int]:
        """How often it changed to each state."""

@final
class Hedged(Servable):
    """A servable that is asked again when an answer takes long; the first good answer counts."""

    def __init__(self, servable: Servable, *, after_s: float = 0.0, budget: float = 0.05) -> None:
        """after_s: how long an answer may take, 0 = the 95th percentile of recent ones. budget:
        second attempts a request, in the long run."""

    def counts(self) -> dict[str, int]:
        """Second attempts: "sent", "won" (of these: brought the answer), "no_budget" (not sent)."""

@final
class HumanDesk:
    """Where chains leave what a person is to decide."""

    def __init__(self) -> None: ...
    def next(self, timeout_s: float) -> Case | None:
        """Waits for a case; None when none came, or after close()."""

    def close(self) -> None: ...

@final
class Case:
    """A request on its way to a person. File it, or refuse it; `awaited` ones may be resolved while
    `wait_s` lasts. What comes too late does nothing."""

    @property
    def queue(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def request_id(self) -> str: ...
    @property
    def trigger(self) -> str: ...
    @property
    def confidence(self) -> float | None: ...
    @property
    def wait_s(self) -> float: ...
    @property
    def awaited(self) -> bool: ...
    @property
    def outputs(self) -> list[tuple[str, str, list[int]]]:
        """(name, datatype, dims with the batch dimension) that a decision is to have."""

    def inputs(self) -> dict[str, Array]:
        """Empty unless the step has `payload`."""

    def suggestion(self) -> dict[str, Array]:
        """The best answer so far; empty unless the step has `payload`."""

    def filed(self, ticket: str) -> None: ...
    def refused(self, why: str) -> None: ...
    def resolve(self, outputs: dict[str, Array]) -> None:
        """Raises InvalidArgumentError naming the output that is not as `outputs` says."""

@final
class ChainStep:
    """`on`: the triggers that lead to the step; None: all but "invalid_input"."""

    @staticmethod
    def model(
        name: str, link: Link, *, on: Sequence[str] | None = None, timeout_s: float = 0.0
    ) -> ChainStep: ...
    @staticmethod
    def rule(
        name: str,
        servable: Servable,
        outputs: dict[str, Array],
        *,
        on: Sequence[str] | None = None,
    ) -> ChainStep:
        """A row of each of the servable's outputs. Raises InvalidArgumentError naming the output
        that does not fit."""

    @staticmethod
    def person(
        name: str,
        desk: HumanDesk,
        queue: str,
        *,
        wait_s: float = 0.0,
        payload: bool = False,
        on: Sequence[str] | None = None,
    ) -> ChainStep: ...

@final
class Accept:
    def __init__(
        self,
        output: str,
        confidence: float,
        *,
        activation: str = "none",
        measure: str = "probability",
    ) -> None:
        """activation: "none", "softmax", "sigmoid"; measure: "probability", "margin"."""

@final
class FallbackChain(Servable):
    def __init__(
        self,
        first: Servable,
        name: str,
        steps: Sequence[ChainStep],
        *,
        accept: Accept | None = None,
        budget_s: float = 0.0,
    ) -> None:
        """What `first`, called `name`, refuses, fails, is too slow or unsure about goes to the
        steps. budget_s: how long a request may take in all; 0: until its deadline. Raises
        InvalidArgumentError when accept's output is none that has a confidence."""

    drift: bool
    @property
    def p95_s(self) -> float:
        """Of the first servable's answers; 0: not known."""

    def counts(self) -> list[tuple[str, str, int]]:
        """[(trigger, the step that answered or "doubtful" or "none", requests)]."""

def histogram_bounds_ns() -> list[int]:
    """Upper bounds (exclusive), four an octave, of every latency histogram."""

def default_limits() -> dict[str, float | int | bool]:
    """Every limit that ServerOptions takes, with its default. Names in `_s`: seconds, 0 = never."""

def available_cores() -> int:
    """Cores this process may use: affinity and cgroup quota."""

def plan_cores(cores: int, demands: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """[(model, instances, threads asked or 0)] -> [(model, instances, threads an instance)]."""

@final
class ShadowTally:
    """What comparing answers with a shadow's found."""

    def __init__(self) -> None: ...
    def read(self) -> dict[str, float]:
        """compared, different (by more than the tolerance), failed (the shadow alone), dropped (too
        many on their way): counts; largest_difference of floating-point values."""

@final
class Traffic:
    def __init__(
        self,
        *,
        default_version: int = 0,
        labels: Mapping[str, int] = {},
        split: Sequence[tuple[str, float]] = (),
        key: str = "",
        salt: str = "",
        fallback: Mapping[str, str] = {},
        shadow: str = "",
        shadow_share: float = 1.0,
        shadow_tolerance: float = 0.0,
        shadow_tally: ShadowTally | None = None,
        replacing: bool = False,
    ) -> None:
        """How a model's requests are shared out. default_version 0: the highest ready one. labels:
        names that clients may use in the place of a version. split: labels with their shares
        (relative to the sum) of what names no version; empty: the default has all. key: the
        request parameter whose value decides, so that one user stays with one arm; without it the
        request id, else chance. salt: makes splits independent. fallback: {label: label that
        answers what it fails}. shadow: label that gets copies of a share of what goes to the
        default, for comparison; `shadow_tally` counts. replacing: while no version is
        ready the model is UNAVAILABLE, not NOT_FOUND. Raises ValueError."""

@final
class ServerOptions:
    def __init__(
        self,
        *,
        host: str = "0.0.0.0",
        port: int = 8001,
        io_threads: int = 0,
        max_message_bytes: int = 0,
        limits: dict[str, float | int | bool] = {},
        python_threads: int = 4,
        service_threads: int = 10,
        on_service_thread: Callable[[int], object] | None = None,
        max_concurrent_calls: int = 0,
        kserve: bool = True,
        busy_poll_s: float = 0.0,
        response_compression: int = 0,
    ) -> None:
        """port 0: any free one. host "": none but add_listener()'s. io_threads 0: planned.
        max_message_bytes 0: 2 GiB - 1 for ModelInfer, 4 MiB for other methods. limits: those that
        differ from default_limits(). on_service_thread is called first on each service thread, with
        its number. max_concurrent_calls: of the methods on "service" and "events"; more are
        refused; 0: no limit. kserve: serves inference. busy_poll_s: how long an I/O thread may look
        for the next call before it sleeps; nothing on a single core. response_compression: of
        responses whose call does not choose, as grpc.Compression: 0 (none), 1 (deflate) or 2
        (gzip)."""

@final
class TlsOptions:
    def __init__(
        self,
        *,
        certificate_chain: bytes = b"",
        private_key: bytes = b"",
        client_ca: bytes = b"",
        certificate_chain_file: str = "",
        private_key_file: str = "",
        client_ca_file: str = "",
        client_auth: str = "none",
    ) -> None:
        """PEM, each as bytes or as a file, which is read again by reload_tls(). client_ca may hold
        revocation lists, too. client_auth: "none", "request" (a client may have no certificate,
        but not a bad one) or "require" (mTLS)."""

@final
class ServerCall:
    """One RPC that Python serves. Any thread may use it; a call that is forgotten ends INTERNAL.
    What sends answers False when the call has ended. Methods that wait release the GIL."""

    @property
    def id(self) -> int:
        """Unique in this process."""

    @property
    def method(self) -> str: ...
    @property
    def peer(self) -> str: ...
    @property
    def principal(self) -> str | None:
        """The caller's name in the access policy; None for anonymous callers."""

    @property
    def metadata(self) -> tuple[Any, ...]:
        """Tuples (key, value), which also have these attributes; values are str, bytes for keys in
        -bin."""

    @property
    def auth_context(self) -> tuple[str, list[tuple[str, bytes]]] | None:
        """(the property that tells the peer's identity or "", properties); None without TLS."""

    def time_remaining(self) -> float | None: ...
    def is_active(self) -> bool:
        """Neither finished nor cancelled."""

    def is_cancelled(self) -> bool:
        """Ended by the client, its deadline, or the server's end."""

    def read(self) -> bytes | None:
        """The next request message; waits. None: the client has half-closed, or the call ended."""

    def read_nowait(self) -> bytes | bool:
        """The same without waiting. True: none yet, one "readable" event will come. False: the
        end."""

    def send_initial_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool: ...
    def set_trailing_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None: ...
    def set_compression(self, compression: int) -> None:
        """grpc.Compression's value; before the first message or metadata is sent."""

    def disable_next_message_compression(self) -> None: ...
    def send(self, message: bytes, *, wait: bool = True) -> bool:
        """One response message. `wait`: as long as more is queued than a slow client may make the
        server hold."""

    def writable_or_notify(self) -> bool:
        """Whether to send more; False: one "writable" event will come."""

    def respond(self, message: bytes) -> bool:
        """Ends the call OK with one more message."""

    def finish(self, code: int, details: str | bytes) -> bool:
        """Ends the call with a status, 0 for OK."""

    def cancel(self) -> None:
        """Ends the call as if the client had cancelled."""

    def notify_end(self) -> bool:
        """Asks for on_end(id). False: the call has ended already."""

@final
class CallEvents:
    """What happens to the calls of methods with pool="events", for an asyncio loop."""

    def fileno(self) -> int:
        """Readable when events wait."""

    def drain(
        self,
    ) -> tuple[
        list[tuple[Callable[[Any, ServerCall], object], bytes | None, ServerCall]],
        list[tuple[int, str]],
    ]:
        """(run, message, call) of new calls, which the caller is to run; then (call id, "readable"
        | "writable" | "ended"). "ended" also comes, unasked, for calls that are cancelled."""

@final
class Server:
    """The gRPC server. With `kserve`, ModelInfer, ServerLive, ServerReady, ModelReady and health
    Check are answered in C++; everything else by handlers added with add_method."""

    def __init__(self, options: ServerOptions) -> None: ...
    def add_method(
        self,
        path: str,
        run: Callable[[Any, ServerCall], bytes | None],
        *,
        pool: str = "quick",
        request_streaming: bool = False,
        response_streaming: bool = False,
        max_message_bytes: int = 0,
        compression: int = 0,
        on_end: Callable[[int], object] | None = None,
    ) -> None:
        """Before start(). `path` is "/package.Service/Method", or "" for every other one.

        run(message, call) is called on a thread of `pool`: "quick"; "blocking", whose handlers may
        take long; "service", of `service_threads`. Or on nobody's: "events" (CallEvents). `message`
        is the request, or None when requests stream. Bytes it answers end the call OK; None
        says that it has ended the call, or will. An exception with `code` (int) and `details` (str)
        attributes ends it with that status, any other with UNKNOWN.

        max_message_bytes 0: 4 MiB, or the server's for "blocking". compression: grpc.Compression's
        value, of responses. on_end(id): called once for each call that asked with notify_end()."""

    def events(self) -> CallEvents: ...
    def add_listener(
        self, address: str, tls: TlsOptions | None = None, *, unix_mode: int = 0o600
    ) -> int:
        """Before start(): binds another address: "host:port", "[::]:0", "unix:/path",
        "unix-abstract:name". Answers the port, 1 for a unix socket. Raises InvalidArgumentError
        (address, PEM), UnavailableError naming the address. Without any, start() takes the options'
        host and port."""

    def reload_tls(self) -> None:
        """Reads the TLS files again: new connections use them, others go on. Raises
        InvalidArgumentError naming the files that are no good; their listeners keep what they
        have."""

    @property
    def tls_not_after(self) -> int:
        """When the first certificate ends, in seconds since 1970; 0 without TLS."""

    def start(self) -> None:
        """Binds and serves. Raises UnavailableError naming the address when it cannot be bound."""

    @property
    def port(self) -> int: ...
    def publish(
        self,
        routes: Mapping[str, Mapping[int, Servable | None]],
        traffic: Mapping[str, Traffic] = {},
        starting: bool = False,
    ) -> None:
        """Replaces the route table whole: {model: {version: ready Servable or None}}. Requests
        without a version go where the model's Traffic says, else to the highest ready one. Returns
        when no I/O thread uses the old table. `starting`: what is not found is UNAVAILABLE, not
        NOT_FOUND, as it may be there soon."""

    def set_tracing(self, *, ratio: float, capacity: int) -> None:
        """Traces inference requests from now on: those whose traceparent says so, and of those
        without one a `ratio`, by a hash of their id. `capacity` of them wait for drain_traces(),
        more are dropped; 0: none is traced."""

    def drain_traces(
        self,
    ) -> tuple[
        list[
            tuple[
                bytes,
                bytes,
                bytes,
                tuple[int, ...],
                int,
                bool,
                int,
                int,
                bytes,
                bytes,
                bytes,
                bytes,
                bytes,
            ]
        ],
        int,
    ]:
        """(answered requests that were traced, how many were dropped since the start). A request
        is (trace id, parent's span id or zeros, span id, stamps, gRPC code, whether it came in a
        stream, rows, rows of its batch or 0, request id, model, version, arm, who failed before).
        Stamps are nanoseconds of the monotonic clock, 0 for what did not happen: arrived, queued,
        taken by an instance, input done, executed, output done, answered."""

    def publish_speech(self, models: Mapping[str, SpeechRecognizer]) -> None:
        """Replaces the recognisers of nvidia.riva.asr; streams that run keep theirs. Returns when
        no I/O thread holds the old table any more."""

    def set_ready(self, ready: bool) -> None: ...
    def set_health(self, service: str, serving: bool) -> None: ...
    def stop(self, grace_s: float = 30.0) -> bool:
        """Refuses new calls, lets running ones finish within the grace, ends the rest. True if none
        had to be ended. Idempotent."""

    def set_access(
        self,
        anonymous: Sequence[str],
        members: Sequence[
            tuple[str, Sequence[str], Sequence[bytes], Sequence[str], tuple[float, float] | None]
        ],
        anonymous_quota: tuple[float, float] | None = None,
    ) -> None:
        """Who may call what from now on. Rights are "probe", "metadata", "infer", "control" and
        "call"; `anonymous` are those of callers without a credential, a member is (name, rights,
        SHA-256 digests of API keys, certificate names, quota). A quota is (inferences and calls a
        second, burst), or None; anonymous callers share theirs."""

    def clear_access(self) -> None:
        """Everyone may call everything, as before the first set_access()."""

    def rights(self) -> list[tuple[str, str]]:
        """[(path, right)] of every method. After start()."""
    def shorten_grace(self, grace_s: float) -> None:
        """While another thread is in stop(): running calls have this long from now, if that is
        less."""

    def statistics(self) -> dict[str, Any]:
        """connections_open, connections_total, connections_refused, calls_started, calls_finished,
        calls_active, quota_refused, bytes_received, bytes_sent, tls_resumed: int; calls_by_code:
        list of 17 ints, by gRPC code; limits_exceeded: {reason: how often a limit ended or refused
        something}; tls_handshakes: {result: int}."""
