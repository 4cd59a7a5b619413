"""The report: read from a machine that the test makes up, and from this one."""

from __future__ import annotations

import json
from pathlib import Path

from headrace import doctor


def test_a_machine(tmp_path: Path) -> None:
    def put(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    put(
        "proc/cpuinfo",
        "processor : 0\nmodel name : Imaginary 9000\nflags : sse avx2 fma avx512f avx512_vnni "
        "amx_int8\n",
    )
    put("proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n")
    put("sys/fs/cgroup/cpu.max", "150000 100000\n")
    put("sys/fs/cgroup/memory.max", "2147483648\n")
    found = {f.name: f.text for f in doctor.examine(tmp_path) if f.section == "hardware"}
    assert found["cpu"].startswith("Imaginary 9000")
    assert found["isa"] == "AVX2, FMA, AVX-512, AVX-512 VNNI, AMX INT8"
    assert "1.5 by cgroup quota" in found["cores"]
    assert found["memory"] == "8.0 GiB, 4.0 GiB available, limited to 2.0 GiB by cgroup"


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    found = {f.name: f for f in doctor.examine(tmp_path)}
    assert found["memory"].text == "unknown"
    assert found["isa"].text == "baseline only"


def test_this_machine_and_every_problem_has_a_fix() -> None:
    findings = doctor.examine()
    names = {f.name for f in findings}
    assert {"cpu", "isa", "cores", "memory", "gpu", "python", "headrace core"} <= names
    assert {"openvino", "onnxruntime", "torch", "tensorrt"} <= names
    for finding in findings:
        assert finding.text
        assert bool(finding.fix) == (finding.state in ("missing", "broken"))
        json.dumps(finding.as_json())
    core = next(f for f in findings if f.name == "headrace core")
    assert core.state == "ok"
