"""ModelVersion from Python: errors, lifetimes, threads."""

from __future__ import annotations

import gc
import queue
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace import _ext, errors

X = {"X": ("FP32", [-1])}
Y = {"Y": ("FP32", [-1])}
ONE = {"X": np.ones(1, np.float32)}


class Gate:
    """A model that waits until it is told to go on."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        self.calls = 0

    def __call__(self, arrays: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        self.entered.release()
        assert self.opened.wait(60)
        return {"Y": arrays["X"]}


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


# --- specs -----------------------------------------------------------------------------------


def test_a_tensor_spec_says_what_it_was_made_of() -> None:
    spec = _ext.TensorSpec("X", "BYTES", [-1, 3], optional=True, labels=["a"], reshape=[3])
    assert (spec.name, spec.datatype, spec.dims, spec.optional) == ("X", "BYTES", [-1, 3], True)
    assert repr(spec) == "TensorSpec('X', 'BYTES', [-1, 3])"
    assert not _ext.TensorSpec("X", "FP32", ()).optional


@pytest.mark.parametrize("datatype", ["", "fp32", "TYPE_FP32", "STRING", "FP8"])
def test_an_unknown_datatype_is_refused(datatype: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=f"'{datatype}' is no datatype"):
        _ext.TensorSpec("X", datatype, [1])


def test_queue_policy_knows_two_actions() -> None:
    _ext.QueuePolicy(timeout_action="DELAY")
    with pytest.raises(errors.InvalidArgumentError, match="REJECT or DELAY"):
        _ext.QueuePolicy(timeout_action="delay")


def test_a_version_needs_a_callable_for_each_instance() -> None:
    spec = _ext.TensorSpec("X", "FP32", [-1])
    model = _ext.callback_model([dict], [spec], [spec], description="two words")
    assert model.description == "two words"
    assert [s.name for s in model.inputs] == ["X"]
    assert [s.name for s in model.outputs] == ["X"]
    with pytest.raises(errors.InvalidArgumentError, match="instance 2"):
        _ext.ModelVersion(
            _ext.ModelSpec("m", 1, 0, [spec], [spec]),
            model,
            policy=_ext.BatchPolicy(),
            instances=2,
        )


def test_a_spec_that_does_not_fit_its_model_is_refused() -> None:
    spec = _ext.TensorSpec("X", "FP32", [-1])
    other = _ext.TensorSpec("Z", "FP32", [-1])
    with pytest.raises(errors.InvalidArgumentError, match="Z"):
        _ext.ModelVersion(
            _ext.ModelSpec("m", 1, 0, [other], [spec]),
            _ext.callback_model([dict], [spec], [spec]),
            policy=_ext.BatchPolicy(),
            instances=1,
        )


def test_plan_cores_and_the_histograms_bounds() -> None:
    assert _ext.available_cores() >= 1
    plan = _ext.plan_cores(8, [("a", 2, 0), ("b", 1, 3)])
    assert [entry[:2] for entry in plan] == [("a", 2), ("b", 1)]
    assert plan[1][2] == 3
    bounds = _ext.histogram_bounds_ns()
    assert bounds == sorted(bounds)


# --- infer -----------------------------------------------------------------------------------


def test_infer_selects_outputs(make_version: Callable[..., Any]) -> None:
    version = make_version(
        lambda a: {"Y": a["X"], "Z": a["X"] + 1}, X, {"Y": ("FP32", [-1]), "Z": ("FP32", [-1])}
    )
    assert set(version.infer(ONE)) == {"Y", "Z"}
    assert list(version.infer(ONE, outputs=["Z"])) == ["Z"]
    with pytest.raises(errors.InvalidArgumentError, match="unexpected inference output 'Q'"):
        version.infer(ONE, outputs=["Q"])
    version.close()


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({}, "expected 1 inputs but got 0"),
        ({"Q": np.ones(1, np.float32)}, "unexpected inference input 'Q' for model 'm'"),
        ({"Q": np.ones(1, np.int64)}, "unexpected inference input 'Q' for model 'm'"),
        ({"X": np.ones((1, 1), np.float32)}, "unexpected shape for input 'X' for model 'm'"),
        ({"X": np.ones(1, np.int8)}, "expected FP32"),
    ],
)
def test_infer_refuses_what_does_not_fit(
    arrays: dict[str, Any], match: str, identity_version: Callable[..., Any]
) -> None:
    version = identity_version()
    with pytest.raises(errors.InvalidArgumentError, match=match):
        version.infer(arrays)
    version.close()


def test_what_a_model_raises_is_internal_or_its_own_code(make_version: Callable[..., Any]) -> None:
    raised: list[BaseException] = []

    def model(arrays: dict[str, Any]) -> dict[str, Any]:
        raise raised[-1]

    class OddError(Exception):
        code = 2**80
        details = "odd"

    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    class HostileError(Exception):
        @property
        def code(self) -> int:
            raise RuntimeError("no")

        details = "x"

    version = make_version(model, X, Y, health=_ext.HealthPolicy(failures=0))
    for error, expected, text in [
        (ValueError("wrong"), errors.InternalError, "ValueError: wrong"),
        (errors.ResourceExhaustedError("full"), errors.ResourceExhaustedError, "full"),
        (errors.NotFoundError("é"), errors.NotFoundError, "é"),
        (OddError("o"), errors.InternalError, "OddError: o"),
        (UnprintableError(), errors.InternalError, "an exception that cannot be printed"),
        (HostileError("h"), errors.InternalError, "HostileError: h"),
        (ValueError("\ud800"), errors.InternalError, "an exception that cannot be printed"),
        (KeyboardInterrupt(), errors.InternalError, "KeyboardInterrupt: "),
        (SystemExit(3), errors.InternalError, "SystemExit: 3"),
    ]:
        raised.append(error)
        with pytest.raises(errors.HeadraceError) as caught:
            version.infer(ONE)
        assert type(caught.value) is expected
        assert caught.value.details == text
    version.close()


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (None, "answered a NoneType, expected a mapping"),
        (3, "answered a int"),
        ({}, "lacks output 'Y'"),
        ({"Y": None}, "output 'Y' has dtype object, expected FP32"),
        ({"Y": np.ones(1)}, "output 'Y' has dtype float64, expected FP32"),
        ({"Y": [[1.0], [2.0, 3.0]]}, "ValueError: setting an array element"),
    ],
)
def test_a_models_wrong_answer_is_internal(
    answer: Any, match: str, make_version: Callable[..., Any]
) -> None:
    version = make_version(lambda a: answer, X, Y)
    with pytest.raises(errors.InternalError, match=match):
        version.infer(ONE)
    version.close()


def test_optional_inputs_are_left_out() -> None:
    seen = []

    def model(arrays: dict[str, Any]) -> dict[str, Any]:
        seen.append(sorted(arrays))
        return {"Y": arrays["X"]}

    specs = [_ext.TensorSpec("X", "FP32", [-1]), _ext.TensorSpec("O", "FP32", [-1], optional=True)]
    output = [_ext.TensorSpec("Y", "FP32", [-1])]
    version = _ext.ModelVersion(
        _ext.ModelSpec("m", 1, 0, specs, output),
        _ext.callback_model([model], specs, output),
        policy=_ext.BatchPolicy(),
        instances=1,
    )
    version.start()
    version.infer(ONE)
    version.infer({**ONE, "O": np.ones(2, np.float32)})
    assert seen == [["X"], ["O", "X"]]
    version.close()


def test_warm_up_runs_every_instance(make_version: Callable[..., Any]) -> None:
    calls = []
    version = make_version(
        [lambda a, i=i: calls.append(i) or {"Y": a["X"]} for i in range(3)],
        X,
        Y,
        max_batch_size=4,
        start=False,
    )
    version.warm_up({"X": np.ones((2, 1), np.float32)})
    assert calls == [0, 1, 2]
    assert version.instances == 3
    assert version.statistics()["execution_count"] == 0
    with pytest.raises(errors.InvalidArgumentError):
        version.warm_up({"X": np.ones((5, 1), np.float32)})
    version.close()


def test_a_timeout_is_told_while_the_model_still_works(make_version: Callable[..., Any]) -> None:
    gate = Gate()
    version = make_version(gate, X, Y)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(version.infer, ONE, timeout_s=0.05)
        gate.entered.acquire()
        with pytest.raises(errors.DeadlineExceededError):
            first.result(60)
        assert not gate.opened.is_set()
        with pytest.raises(errors.DeadlineExceededError):  # in the queue
            version.infer(ONE, timeout_s=0.01)
        gate.opened.set()
    # The answers that came too late went nowhere.
    assert version.infer(ONE, timeout_s=float("inf"))["Y"].tolist() == [1]
    assert version.infer(ONE, timeout_s=1e300)["Y"].tolist() == [1]
    assert version.close()
    assert version.in_flight == 0
    assert gate.calls == 3
    for past in (0.0, -1.0, float("nan")):
        again = make_version(Gate(), X, Y)
        with pytest.raises(errors.DeadlineExceededError):
            again.infer(ONE, timeout_s=past)
        again.close(drain=False)


def test_requests_are_batched_and_counted(make_version: Callable[..., Any]) -> None:
    gate = Gate()
    sizes = []

    def model(arrays: dict[str, Any]) -> dict[str, Any]:
        sizes.append(len(arrays["X"]))
        return gate(arrays)

    version = make_version(model, X, Y, max_batch_size=8)
    with ThreadPoolExecutor(9) as pool:
        answers = [pool.submit(version.infer, {"X": np.full((1, 1), 0, np.float32)})]
        gate.entered.acquire()
        answers += [
            pool.submit(version.infer, {"X": np.full((1, 1), i, np.float32)}) for i in range(1, 9)
        ]
        while version.pending < 8:
            threading.Event().wait(0.001)
        assert version.in_flight == 9
        gate.opened.set()
        assert [a.result()["Y"].tolist() for a in answers] == [[[i]] for i in range(9)]
    assert sizes == [1, 8]
    statistics = version.statistics()
    assert statistics["inference_count"] == 9
    assert statistics["execution_count"] == 2
    assert set(statistics["batches"]) == {1, 8}
    assert statistics["success"][0] == 9
    assert statistics["fail"] == (0, 0)
    assert statistics["failures"] == {"REJECTED": 0, "CANCELED": 0, "BACKEND": 0, "OTHER": 0}
    assert sum(statistics["request_ns"]["buckets"]) == statistics["request_ns"]["count"] == 9
    assert len(statistics["request_ns"]["buckets"]) == len(_ext.histogram_bounds_ns())
    assert statistics["last_inference_ms"] > 0
    assert (version.pending, version.in_flight) == (0, 0)
    version.close()


# --- lifetimes -------------------------------------------------------------------------------


def test_a_closed_version_refuses(identity_version: Callable[..., Any]) -> None:
    version = identity_version()
    assert version.close()
    assert version.close()
    with pytest.raises(errors.UnavailableError):
        version.infer(ONE)


@pytest.mark.parametrize("close", [True, False])
def test_a_model_is_let_go_of(close: bool, make_version: Callable[..., Any]) -> None:
    class Callable_:  # noqa: N801
        def __call__(self, arrays: dict[str, Any]) -> dict[str, Any]:
            return {"Y": arrays["X"]}

    model = Callable_()
    gone = weakref.ref(model)
    before = sys.getrefcount(model)
    version = make_version(model, X, Y)
    assert sys.getrefcount(model) > before
    version.infer(ONE)
    if close:
        version.close()
    del version
    gc.collect()
    assert sys.getrefcount(model) == before
    del model
    assert gone() is None


def test_cycles_of_versions_leave_no_threads_and_no_memory(
    identity_version: Callable[..., Any],
) -> None:
    array = {"X": np.ones(100_000, np.float32)}

    def cycle() -> None:
        version = identity_version()
        version.infer(array)
        version.close()

    for _ in range(5):
        cycle()
    gc.collect()
    started = threads()
    tracemalloc.start()
    before = tracemalloc.take_snapshot()
    for _ in range(50):
        cycle()
    gc.collect()
    after = tracemalloc.take_snapshot()
    tracemalloc.stop()
    assert threads() <= started  # grpcio's, of other tests, may end meanwhile
    grown = sum(stat.size_diff for stat in after.compare_to(before, "filename"))
    assert grown < 100_000  # less than one array in 50


def test_infer_keeps_nothing(identity_version: Callable[..., Any]) -> None:
    version = identity_version("BYTES")
    element = b"x" * 100
    array = np.empty(10, object)
    array[:] = element
    before = sys.getrefcount(element)
    for _ in range(100):
        version.infer({"X": array})
    assert sys.getrefcount(element) == before
    version.close()


def test_a_version_that_is_dropped_with_requests_running(make_version: Callable[..., Any]) -> None:
    gate = Gate()
    version = make_version(gate, X, Y)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(version.infer, ONE) for _ in range(4)]
        gate.entered.acquire()
        del version  # the frames of infer() hold it
        gc.collect()
        gate.opened.set()
        assert [a.result(60)["Y"].tolist() for a in answers] == [[1]] * 4


def test_close_releases_the_gil(make_version: Callable[..., Any]) -> None:
    gate = Gate()
    version = make_version(gate, X, Y)
    with ThreadPoolExecutor(3) as pool:
        answer = pool.submit(version.infer, ONE)
        gate.entered.acquire()
        closing = pool.submit(version.close)
        while True:  # until it refuses
            try:
                version.infer(ONE, timeout_s=0.001)
            except errors.UnavailableError:
                break
            except errors.DeadlineExceededError:
                continue
        assert not closing.done()
        gate.opened.set()
        assert closing.result(60)
        assert answer.result(60)["Y"].tolist() == [1]


def test_close_past_its_time_refuses_what_is_queued(make_version: Callable[..., Any]) -> None:
    gate = Gate()
    version = make_version(gate, X, Y)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(version.infer, ONE)
        gate.entered.acquire()
        second = pool.submit(version.infer, ONE)
        while version.pending < 1:
            threading.Event().wait(0.001)
        closing = pool.submit(version.close, timeout_s=0.01)
        with pytest.raises(errors.UnavailableError):
            second.result(60)
        gate.opened.set()
        assert not closing.result(60)
        assert first.result(60)["Y"].tolist() == [1]
    assert gate.calls == 1


def test_a_model_may_drop_its_own_version(make_version: Callable[..., Any]) -> None:
    """Its instance thread cannot wait for itself."""
    held: list[Any] = []
    dropped = threading.Event()

    def model(arrays: dict[str, Any]) -> dict[str, Any]:
        assert dropped.wait(60)
        held.clear()
        return {"Y": arrays["X"]}

    other = make_version(lambda a: {"Y": a["X"]}, X, Y)
    held.append(make_version(model, X, Y))
    server = _ext.Server(_ext.ServerOptions(host="127.0.0.1", port=0, io_threads=1))
    server.start()
    server.publish({"m": {1: held[0]}})
    import grpc

    from headrace.protocol import kserve

    request = kserve.ModelInferRequest(model_name="m")
    request.inputs.add(name="X", datatype="FP32", shape=[1])
    request.raw_input_contents.append(np.ones(1, np.float32).tobytes())
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(
            request.SerializeToString(), timeout=60
        )
        while not held[0].in_flight:
            threading.Event().wait(0.001)
        server.publish({"m": {1: other}})  # `held` is the last that holds it
        dropped.set()
        answer = kserve.ModelInferResponse.FromString(call.result())
    assert answer.raw_output_contents[0] == np.ones(1, np.float32).tobytes()
    server.stop(0.0)
    other.close()


def test_a_sick_instance_is_made_anew_and_told_of() -> None:
    spec = _ext.TensorSpec("X", "FP32", [-1])
    told: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
    made: list[int] = []

    def sick(arrays: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("lost")

    def remake(index: int) -> Any:
        made.append(index)
        if len(made) == 1:
            raise OSError("no device")
        return dict

    version = _ext.ModelVersion(
        _ext.ModelSpec("m", 1, 0, [spec], [spec]),
        _ext.callback_model([sick], [spec], [spec], remake=remake),
        policy=_ext.BatchPolicy(),
        instances=1,
        health=_ext.HealthPolicy(failures=2, backoff_s=0.001, backoff_max_s=0.002),
        on_instance_event=lambda *event: told.put(event),
    )
    version.start()
    assert version.ready
    for _ in range(2):
        with pytest.raises(errors.InternalError, match="lost"):
            version.infer(ONE)
    events = [told.get(timeout=60) for _ in range(3)]
    assert [event[:3] for event in events] == [
        ("quarantined", 0, 0),
        ("rebuild failed", 0, 0),
        ("returned", 0, 1),
    ]
    assert "lost" in events[0][3]
    assert "no device" in events[1][3]
    assert version.ready
    assert version.health == {"instances": 1, "in_service": 1, "quarantines": 1, "fault": ""}
    assert version.statistics()["health"] == version.health
    assert made == [0, 0]
    version.close()
