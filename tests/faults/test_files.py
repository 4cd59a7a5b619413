"""Files: models that are broken or half there, disks that are full or fail, configurations that
are wrong."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from harness import Server, eventually, onnx_model, tensor, write_model
from ledger import Ledger, ask, check_tickets
from load import Load
from onnx import TensorProto
from preload import Faults
from probe import CODE, RAISE, write_asking, write_probe
from tritonclient.utils import InferenceServerException

Start = Callable[..., Server]
Figure = Callable[[str, Any], None]


def in_private_mounts() -> bool:
    """Whether a mount namespace of one's own can be had, for a small disk."""
    done = (
        subprocess.run(
            ["unshare", "-m", "sh", "-c", "mount -t tmpfs -o size=64k none /mnt"],
            capture_output=True,
        )
        if shutil.which("unshare")
        else None
    )
    return done is not None and done.returncode == 0


def relu(columns: int) -> bytes:
    batch: list[Any] = ["batch", columns]
    return onnx_model("Relu", {"X": (TensorProto.FLOAT, batch)}, {"Y": (TensorProto.FLOAT, batch)})


def broken(good: bytes) -> dict[str, bytes]:
    """Truncated at every tenth, bytes flipped, empty, something else."""
    chance = random.Random(5)
    made = {f"cut at {tenth}0 %": good[: len(good) * tenth // 10] for tenth in range(10)}
    for number in range(10):
        flipped = bytearray(good)
        for at in chance.sample(range(len(good)), max(1, len(good) // 4)):
            flipped[at] ^= 1 + chance.randrange(255)
        made[f"flipped {number}"] = bytes(flipped)
    made["text"] = b"<html>404 not found</html>"
    made["random"] = chance.randbytes(100_000)
    return made


@pytest.mark.fault("corrupt model file")
def test_broken_model_files(repository: Path, start: Start, figure: Figure) -> None:
    """A broken version 2 of a Python model and of an ONNX model, again and again under load."""
    write_probe(repository)
    good = relu(8)
    write_model(repository, "relu", "", {"model.onnx": good}, 1)
    server = start("--model-control-mode=explicit", "--load-model=*")
    ledger = Ledger()
    x = np.array([[-1, 2, -3, 4, -5, 6, -7, 8]], np.float32)
    refused, reasons = 0, set()
    kinds = broken(good)
    python = {
        "half a file": CODE[: len(CODE) // 2],
        "a syntax error": "def infer(:\n",
        "it raises": "raise OSError('no weights')\n",
        "nothing": "",
    }

    def load(model: str, file: str, content: bytes | str) -> str:
        """Version 2 with that file; "" when it is taken."""
        folder = write_model(repository, model, "", {file: content}, 2)
        try:
            server.client.load_model(model, client_timeout=60)
        except InferenceServerException as error:
            assert server.client.is_model_ready(model, "1")
            assert not server.client.is_model_ready(model, "2")
            return str(error.message())
        else:
            return ""
        finally:
            shutil.rmtree(folder)

    with Load(ledger, [server.address], connections=2, in_flight=4) as running:
        running.more(200)
        for name, content in python.items():
            reason = load("probe", "model.py", content)
            assert reason, name
            reasons.add(reason)
            refused += 1
        for name, data in kinds.items():
            reason = load("relu", "model.onnx", data)
            # A changed name in it is no fault that anybody could see.
            assert reason or name.startswith("flipped"), name
            if reason:
                refused += 1
                reasons.add(reason)
                got = server.client.infer("relu", [tensor("X", x)]).as_numpy("Y")
                np.testing.assert_array_equal(got, np.maximum(x, 0))
            else:
                server.client.load_model("relu")
        running.more(200)
    ledger.check()
    assert {entry.version for entry in ledger.ended()} == {1}
    write_probe(repository, version=2)
    server.client.load_model("probe")
    assert ask(ledger, server.stub).version == 2, "and a good one is taken"
    figure("broken files", len(python) + len(kinds))
    figure("refused with a reason", refused)
    figure("calls to the old version", len(ledger.entries))
    figure("failed", len(ledger.entries) - ledger.ok())


@pytest.mark.fault("half-written model directory")
def test_a_model_that_is_copied_slowly(repository: Path, start: Start, figure: Figure) -> None:
    """Poll mode, and a version whose files grow under its own name."""
    folder = write_probe(repository)
    server = start("--model-control-mode=poll", "--repository-poll-secs=1", "--no-exit-on-error")
    ledger = Ledger()
    with Load(ledger, [server.address], connections=2, in_flight=4) as load:
        load.more(200)
        version = folder / "2"
        version.mkdir()
        # No part of it but the whole is Python: were it loaded too early, the log would say so.
        lines = ["exec('''", *CODE.splitlines(keepends=True), "''')\n"]
        with (version / "model.py").open("w") as file:
            for number, line in enumerate(lines):
                file.write(line)
                file.flush()
                if number % 3 == 0:
                    # Slower than the server looks, faster than two looks.
                    load.more(50)
                    time.sleep(0.3)
        eventually(
            lambda: server.client.is_model_ready("probe", "2"), "the whole one is served", 60
        )
        tries = server.log().count("SyntaxError")
        load.more(200)
        # The writer crashes between two files: a model without its configuration's file.
        half = repository / "half"
        (half / "1").mkdir(parents=True)
        (half / "1" / "weights.bin").write_bytes(b"1")
        eventually(lambda: "half" in server.log(), "it was looked at", 60)
        assert not server.client.is_model_ready("half")
        (half / "1" / "model.py").write_text(CODE)
        eventually(lambda: server.client.is_model_ready("half"), "complete, it is served", 60)
        load.more(100)
    ledger.check()
    versions = [entry.version for entry in ledger.ended()]
    figure("calls", len(versions))
    figure("by version 2", versions.count(2))
    figure("loads of a half file", tries)
    figure("errors, or answers of a half version", 0)


def served_despite(
    server: Server, tickets: Path, spoil: Callable[[], None], mend: Callable[[], None]
) -> tuple[Ledger, int]:
    """Requests that become tickets, before, while and after they cannot be written."""
    ledger = Ledger()
    options: dict[str, Any] = {"model": "asks", "choose": lambda: (RAISE, 0)}
    with Load(ledger, [server.address], connections=1, in_flight=4, **options) as load:
        load.more(50)
        spoil()

        def without() -> int:
            return sum("hr.ticket" not in entry.parameters for entry in ledger.ended())

        eventually(lambda: without() > 50, "they are answered without a ticket", 60)
        while_spoilt = without()
        mend()
        known = ledger.ok() - without()
        eventually(lambda: ledger.ok() - without() > known + 50, "tickets again", 60)
    ledger.check()
    refused = server.metric("headrace_human_events_total", event="refused")
    told = ledger.ok() - without()
    on_disk = check_tickets(ledger, tickets)
    # Each request has its ticket, or it is counted that it has none.
    assert refused == without()
    assert on_disk == server.metric("headrace_human_events_total", event="filed")
    assert told <= on_disk
    return ledger, while_spoilt


@pytest.mark.fault("disk full (tickets on a tmpfs of 16 MB)")
@pytest.mark.skipif(not in_private_mounts(), reason="no right to mount a tmpfs")
def test_a_full_disk(repository: Path, tmp_path: Path, start: Start, figure: Figure) -> None:
    write_asking(repository)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=16m none {disk} && exec "$@"'
    server = start(
        *("--tickets", str(disk / "tickets.db"), "--state-dir", str(disk / "state")),
        wrap=("unshare", "-m", "sh", "-c", mount, "-"),
    )
    inside = Path(f"/proc/{server.process.pid}/root{disk}")
    filler = inside / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(65536))

    ledger, _ = served_despite(server, inside / "tickets.db", fill, filler.unlink)
    without = sum("hr.ticket" not in entry.parameters for entry in ledger.ended())
    figure("calls", len(ledger.entries))
    figure("failed", 0)
    figure("with a ticket", len(ledger.entries) - without)
    figure("without, counted", without)
    figure("tickets told and lost", 0)


@pytest.mark.fault("I/O error of the disk (fsync EIO)")
def test_fsync_fails(repository: Path, tmp_path: Path, start: Start, figure: Figure) -> None:
    write_asking(repository)
    faults = Faults(tmp_path)
    tickets = tmp_path / "tickets.db"
    server = start("--tickets", str(tickets), environment=faults.environment)
    ledger, _ = served_despite(
        server,
        tickets,
        lambda: faults.set("fail_fsync", 1),
        lambda: faults.set("fail_fsync", 0),
    )
    assert faults.get("failed_fsyncs") > 0
    without = sum("hr.ticket" not in entry.parameters for entry in ledger.ended())
    figure("failed fsyncs", faults.get("failed_fsyncs"))
    figure("calls", len(ledger.entries))
    figure("failed", 0)
    figure("without a ticket, counted", without)
    figure("tickets told and lost", 0)


AUTH = """
anonymous: [probe, metadata]
members:
  - {name: client, rights: [probe, metadata, infer], keys: ["sha256:%s"]}
"""


@pytest.mark.fault("configuration reload: bad YAML, bad certificate")
def test_bad_configurations(repository: Path, tmp_path: Path, start: Start, figure: Figure) -> None:
    folder = write_probe(repository)
    digest = hashlib.sha256(b"key").hexdigest()
    good = AUTH % digest
    auth = tmp_path / "auth.yaml"
    auth.write_text(good)
    ca = trustme.CA()
    made = ca.issue_cert("localhost", "127.0.0.1")
    cert, key = tmp_path / "server.pem", tmp_path / "server.key"
    made.cert_chain_pems[0].write_to_path(cert)
    made.private_key_pem.write_to_path(key)
    server = start(
        *("--auth-file", str(auth), "--tls-cert", str(cert), "--tls-key", str(key)),
        *("--model-control-mode=poll", "--repository-poll-secs=1"),
        ready=False,
    )
    eventually(lambda: "ready in" in server.log(), "ready")
    from grpc import ssl_channel_credentials

    bad = {
        "syntax": "anonymous: [probe\n",
        "unknown key": good + "memberz: []\n",
        "unknown right": good.replace("infer", "everything"),
        "bad digest": good.replace(digest, "abc"),
        "no mapping": "- 1\n",
        "huge": "a: [" + "x, " * 2_000_000 + "]\n",
        "aliases": "a: &a [1,1]\nb: &b [*a,*a]\nc: [*b,*b]\n" + good,
        "deep": "[" * 50_000,
        "no date": "a: 2001-13-45\n",
        "binary": "\0\1\2",
        "empty": "",
    }
    ledger = Ledger()
    with Load(
        ledger,
        [f"localhost:{server.port}"],
        connections=2,
        in_flight=4,
        metadata=[("x-api-key", "key")],
        credentials=ssl_channel_credentials(ca.cert_pem.bytes()),
    ) as load:
        load.more(200)
        complaints = 0

        def reload(what: str) -> None:
            nonlocal complaints
            server.process.send_signal(signal.SIGHUP)
            eventually(lambda: server.log().count("policy stays as it was") > complaints, what, 60)
            complaints += 1
            load.more(50)

        for what, text in bad.items():
            auth.write_text(text)
            reload(what)
        auth.unlink()
        reload("no file")
        auth.symlink_to(auth)
        reload("a symlink to itself")
        auth.unlink()
        auth.write_text(good)
        # The certificate and its key: garbage, half, not belonging together.
        whole = cert.read_bytes()
        for data in (b"", whole[: len(whole) // 2], b"garbage"):
            cert.write_bytes(data)
            before = len(server.log())
            server.process.send_signal(signal.SIGHUP)
            eventually(lambda: "cannot be used" in server.log()[before:], "told", 60)  # noqa: B023
            load.more(50)
        cert.write_bytes(whole)
        # A model's policy.
        for text in ("fallback: [", "falback: []\n", "deadline: soon\n", "fallback: 7\n"):
            before = len(server.log())
            (folder / "policy.yaml").write_text(text)
            eventually(lambda: "policy.yaml" in server.log()[before:], "it is told", 60)  # noqa: B023
            load.more(50)
        (folder / "policy.yaml").unlink()
        load.more(100)
    ledger.check()
    assert server.process.poll() is None
    figure("bad configurations", len(bad) + 2 + 3 + 4)
    figure("calls", len(ledger.entries))
    figure("affected", len(ledger.entries) - ledger.ok())
