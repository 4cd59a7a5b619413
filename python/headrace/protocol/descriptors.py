"""Message classes out of `headrace.binpb`, the FileDescriptorSet that the build makes of `proto/`.

Works with every protobuf runtime from 4.25 on, since nothing here is generated code.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

DESCRIPTOR_SET = "headrace.binpb"

_lock = threading.Lock()
_pool: DescriptorPool | None = None


def _descriptor_set() -> bytes:
    import headrace.protocol

    # An editable install spreads the package: Python files here, what the build made there.
    for folder in headrace.protocol.__path__:
        path = Path(folder) / DESCRIPTOR_SET
        if path.is_file():
            return path.read_bytes()
    raise ImportError(
        f"{DESCRIPTOR_SET} is missing beside {__file__}: the build makes it; run `pip install .`, "
        "or `pip install -e .` for development"
    )


def pool() -> DescriptorPool:
    """The private pool, with every file of proto/ in it. Thread-safe."""
    global _pool
    with _lock:  # two pools would mean two different classes for one message
        if _pool is None:
            files = descriptor_pb2.FileDescriptorSet.FromString(_descriptor_set()).file
            filled = DescriptorPool()
            for file in files:  # protoc writes imported files first
                filled.AddSerializedFile(file.SerializeToString())
            _pool = filled
        return _pool


def _member(file: FileDescriptor, name: str) -> Any:
    message = file.message_types_by_name.get(name)
    if message is not None:
        return message_factory.GetMessageClass(message)
    enum = file.enum_types_by_name.get(name)
    if enum is not None:
        return EnumTypeWrapper(enum)
    for enum in file.enum_types_by_name.values():
        if name in enum.values_by_name:
            return enum.values_by_name[name].number
    return None


def module_members(
    module: str, file_name: str, cache: dict[str, Any]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a module that shows a .proto file. `cache`: its globals()."""

    def get(name: str) -> Any:
        if name.startswith("__"):  # asked by the import system; not worth loading descriptors for
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        file = pool().FindFileByName(file_name)
        member = file if name == "DESCRIPTOR" else _member(file, name)
        if member is None:
            raise AttributeError(f"{file_name} defines no {name!r}")
        cache[name] = member
        return member

    def names() -> list[str]:
        file = pool().FindFileByName(file_name)
        values = [v for enum in file.enum_types_by_name.values() for v in enum.values_by_name]
        return sorted(
            ["DESCRIPTOR", *file.message_types_by_name, *file.enum_types_by_name, *values]
        )

    return get, names
