"""model.py: what a Python model may look like, and what its mistakes are called."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from headrace.control.python_models import import_model
from headrace.errors import InternalError, InvalidArgumentError


def test_a_class_with_context_attributes_and_close(
    repository, start_server, connect, tmp_path
) -> None:
    closed = tmp_path / "closed"
    repository.put(
        "scale/config.pbtxt",
        f"""
        instance_group {{ count: 2 kind: KIND_CPU }}
        parameters {{ key: "factor" value {{ string_value: "3" }} }}
        parameters {{ key: "closed" value {{ string_value: "{closed}" }} }}
        """,
    )
    repository.put("scale/1/arithmetic.py", "def multiply(a, b):\n    return a * b\n")
    repository.put(
        "scale/1/model.py",
        """
        from arithmetic import multiply

        class Model:
            inputs = {"x": ("FP32", [2])}
            outputs = {"y": ("FP32", [2]), "rows": ("INT64", [1])}
            max_batch_size = 8

            def __init__(self, context):
                self.factor = float(context.parameters["factor"])
                self.context = context
                assert context.name == "scale" and context.version == 1
                assert (context.path / "model.py").is_file()

            def __call__(self, inputs):
                x = inputs["x"]
                rows = x[:, :1].astype("int64") * 0 + len(x)
                return {"y": multiply(x, x.dtype.type(self.factor)), "rows": rows}

            def close(self):
                with open(self.context.parameters["closed"], "a") as file:
                    file.write(f"{self.context.instance}\\n")
        """,
    )
    server = start_server(load_model=("scale",))
    client = connect(server)
    answer = client.infer("scale", {"x": np.array([[1, 2], [3, 4]], np.float32)})
    assert answer["y"].tolist() == [[3, 6], [9, 12]]
    assert answer["rows"].tolist() == [[2], [2]]
    assert client.model_config("scale").HasField("dynamic_batching")
    assert "arithmetic" not in sys.modules, "a model's own modules are its own"
    client.unload("scale")
    assert server.manager.wait_drained(30)
    assert sorted(closed.read_text().split()) == ["0", "1"]


def test_a_function_and_strings(repository, start_server, connect) -> None:
    repository.put(
        "shout/1/model.py",
        """
        inputs = {"text": ("BYTES", [-1])}
        outputs = {"loud": ("BYTES", [-1])}

        def infer(inputs):
            import numpy as np
            loud = np.array([t.decode().upper() for t in inputs["text"]], object)
            return {"loud": loud}
        """,
    )
    client = connect(start_server(load_model=("shout",)))
    answer = client.infer("shout", {"text": np.array([b"a", "\u00e4".encode()], object)})
    assert answer["loud"].tolist() == [b"A", "\u00c4".encode()]


def test_a_reload_takes_up_new_code_and_new_modules(repository, start_server, connect) -> None:
    repository.put("m/1/helper_module.py", "VALUE = 1\n")
    code = """
        import helper_module

        inputs = {"x": ("INT32", [1])}
        outputs = {"y": ("INT32", [1])}

        def infer(inputs):
            return {"y": inputs["x"] * 0 + helper_module.VALUE}
        """
    repository.put("m/1/model.py", code)
    client = connect(start_server(load_model=("m",)))
    x = {"x": np.array([5], np.int32)}
    assert client.infer("m", x)["y"].tolist() == [1]
    repository.put("m/1/helper_module.py", "VALUE = 22\n")
    client.load("m")
    assert client.infer("m", x)["y"].tolist() == [22]


def test_only_the_importing_thread_sees_the_modules_beside_a_model(tmp_path) -> None:
    (tmp_path / "beside_it.py").write_text("")
    (tmp_path / "model.py").write_text(
        "import sys, threading\n"
        "from importlib.util import find_spec\n"
        "mine, others, paths = find_spec('beside_it'), [], list(sys.path)\n"
        "thread = threading.Thread(target=lambda: others.append(find_spec('beside_it')))\n"
        "thread.start(); thread.join()\n"
    )
    before = list(sys.path)
    model = import_model(tmp_path / "model.py")
    assert model.mine.origin == str(tmp_path / "beside_it.py")
    assert model.others == [None]
    # An entry that comes or goes makes an import elsewhere miss another one.
    assert model.paths == before == sys.path


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (
            "raise RuntimeError('boom')",
            r"version 1 is at UNAVAILABLE state: Internal: RuntimeError: boom",
        ),
        ("def infer(:", "SyntaxError"),
        ("x = 1", "must define a class `Model`"),
        ("def infer(inputs): pass", "does not tell its tensors"),
        ("class Model:\n    inputs = outputs = {'x': ('FP32', [1])}", "no __call__"),
        (
            "inputs = outputs = {'x': ('FP31', [1])}\ndef infer(i): return i",
            "unknown datatype 'FP31'",
        ),
        ("inputs = outputs = {'x': 'FP32'}\ndef infer(i): return i", "must be (datatype, dims)"),
        (
            "class Model:\n    inputs = outputs = {'x': ('FP32', [1])}\n"
            "    def __init__(self):\n        raise OSError('no such device')\n"
            "    def __call__(self, i): return i",
            "OSError: no such device",
        ),
        ("import sys\nsys.exit(3)", "SystemExit"),
    ],
)
def test_mistakes_name_the_file(repository, start_server, connect, code: str, text: str) -> None:
    path = repository.put("m/1/model.py", code)
    client = connect(start_server())
    with pytest.raises(InvalidArgumentError) as caught:
        client.load("m")
    assert caught.value.details.startswith("load failed for model 'm': version 1 is at UNAVAILABLE")
    assert text in caught.value.details
    assert str(path) in caught.value.details


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("raise KeyError('lost')", "lost"),
        ("return {}", "y"),
        ("return None", ""),
        ("return {'y': inputs['x'].astype('int32')}", "y"),
        ("return {'y': inputs['x'][:0]}", ""),
    ],
)
def test_what_a_callable_does_wrong_is_the_requests_internal_error(
    repository, start_server, connect, body: str, text: str
) -> None:
    repository.put(
        "m/1/model.py",
        "inputs = {'x': ('FP32', [2])}\noutputs = {'y': ('FP32', [2])}\nmax_batch_size = 4\n"
        f"def infer(inputs):\n    {body}\n",
    )
    client = connect(start_server(load_model=("m",)))
    for _ in range(3):
        with pytest.raises(InternalError) as caught:
            client.infer("m", {"x": np.zeros((2, 2), np.float32)})
        assert text in caught.value.details
    (statistics,) = client.statistics("m")
    assert statistics.inference_stats.fail.count == 3
