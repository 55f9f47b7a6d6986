"""Bodies: the wire's objects as the JSON text that is stored, and back."""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.wire.assistants import Assistant
from perdure.wire.files import File
from perdure.wire.messages import Message
from perdure.wire.runs import Extra, Run
from perdure.wire.steps import RunStep
from perdure.wire.threads import Thread
from perdure.wire.vector_stores import FileBatch, VectorStore, VectorStoreFile

_encoder = msgspec.json.Encoder()

read_assistant = msgspec.json.Decoder(Assistant).decode
read_thread = msgspec.json.Decoder(Thread).decode
read_message = msgspec.json.Decoder(Message).decode
read_run = msgspec.json.Decoder(Run).decode
read_step = msgspec.json.Decoder(RunStep).decode
read_extra = msgspec.json.Decoder(Extra).decode
read_file = msgspec.json.Decoder(File).decode
read_vector_store = msgspec.json.Decoder(VectorStore).decode
read_vector_store_file = msgspec.json.Decoder(VectorStoreFile).decode
read_file_batch = msgspec.json.Decoder(FileBatch).decode


def encode(value: Any) -> str:
    """Return the JSON text of an object."""
    return _encoder.encode(value).decode()
