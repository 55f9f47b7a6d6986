"""Images that are files here, on their way to the model: their bytes take the place of their ids."""

from __future__ import annotations

import base64

import msgspec

from perdure.blobs import BlobGone, Blobs
from perdure.domain.transcript import FILE_SCHEME, ChatMessage
from perdure.errors import NotFound
from perdure.ids import Clock
from perdure.models.base import ModelRequest
from perdure.store.db import Database
from perdure.store.files import get_file
from perdure.tools.toolbox import Images

MOST_BYTES = 20 * 1024 * 1024
"""The largest image that models take; so with the hosted ones."""

_BEGINNINGS = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}


class FileImages:
    """`Images` out of the files of this server."""

    def __init__(self, database: Database, blobs: Blobs, clock: Clock) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock

    async def data_url(self, file_id: str, project_id: str) -> str | None:
        """Return the image as a `data:` address, or None."""
        try:
            stored = await self._database.read(get_file, file_id, project_id, int(self._clock.now()))
        except NotFound:
            return None
        if stored.file.bytes > MOST_BYTES:
            return None
        try:
            content = b"".join([piece async for piece in self._blobs.read(stored.blob)])
        except BlobGone:  # it never comes back: the model is told instead of the run waiting for it
            return None
        kind = image_type(content)
        return None if kind is None else f"data:{kind};base64,{base64.b64encode(content).decode()}"


def image_type(content: bytes) -> str | None:
    """Return the media type of a PNG, JPEG, GIF or WebP image by its first bytes; None for anything else."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for beginning, kind in _BEGINNINGS.items() if content.startswith(beginning)), None)


async def with_images(request: ModelRequest, images: Images | None, project_id: str) -> ModelRequest:
    """Return the request with the images themselves; what can not be shown is said in words."""
    if not any(isinstance(message.get("content"), list) for message in request.messages):
        return request
    messages = [await _shown(message, images, project_id) for message in request.messages]
    return msgspec.structs.replace(request, messages=messages)


async def _shown(message: ChatMessage, images: Images | None, project_id: str) -> ChatMessage:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = []
    for part in content:
        url = part.get("image_url", {}).get("url", "")
        if not url.startswith(FILE_SCHEME):
            parts.append(part)
            continue
        file_id = url.removeprefix(FILE_SCHEME)
        data = None if images is None else await images.data_url(file_id, project_id)
        if data is None:
            parts.append({"type": "text", "text": f"[The image {file_id} can not be shown: it is gone, or no image.]"})
        else:
            parts.append({"type": "image_url", "image_url": {**part["image_url"], "url": data}})
    return {**message, "content": parts}
