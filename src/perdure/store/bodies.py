"""Bodies: the wire's objects as the JSON text that is stored, and back."""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.wire.assistants import Assistant
from perdure.wire.messages import Message
from perdure.wire.runs import Extra, Run
from perdure.wire.steps import RunStep
from perdure.wire.threads import Thread

_encoder = msgspec.json.Encoder()

read_assistant = msgspec.json.Decoder(Assistant).decode
read_thread = msgspec.json.Decoder(Thread).decode
read_message = msgspec.json.Decoder(Message).decode
read_run = msgspec.json.Decoder(Run).decode
read_step = msgspec.json.Decoder(RunStep).decode
read_extra = msgspec.json.Decoder(Extra).decode


def encode(value: Any) -> str:
    """Return the JSON text of an object."""
    return _encoder.encode(value).decode()
