"""Images that are files: what a model is shown of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.domain.transcript import FILE_SCHEME
from perdure.models.base import ModelRequest
from perdure.tools.images import image_type, with_images

PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 20


class OneImage:
    """`Images` that knows one file of one project."""

    async def data_url(self, file_id: str, project_id: str) -> str | None:
        return "data:image/png;base64,AAAA" if (file_id, project_id) == ("file-a", "proj") else None


def shown(*file_ids: str, images: OneImage | None = None, project_id: str = "proj") -> list[Any]:
    parts: list[Any] = [
        {"type": "image_url", "image_url": {"url": FILE_SCHEME + one, "detail": "low"}} for one in file_ids
    ]
    elsewhere = {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "auto"}}
    message = {"role": "user", "content": [{"type": "text", "text": "look"}, *parts, elsewhere]}
    request = ModelRequest(model="m", messages=[{"role": "system", "content": "Be brief."}, message])
    answered = asyncio.run(with_images(request, images, project_id))
    assert answered.messages[0] == request.messages[0]
    assert answered.messages[1]["content"][-1] == elsewhere
    content: list[Any] = answered.messages[1]["content"][1:-1]
    return content


def test_an_image_takes_the_place_of_its_id() -> None:
    assert shown("file-a", images=OneImage()) == [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
    ]


def test_what_can_not_be_shown_is_said() -> None:
    for parts in (
        shown("file-gone", images=OneImage()),
        shown("file-a", images=OneImage(), project_id="other"),
        shown("file-a"),
    ):
        assert parts[0]["type"] == "text"
        assert "can not be shown" in parts[0]["text"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0" + b"x" * 20, "image/jpeg"),
        (b"GIF89a" + b"x" * 20, "image/gif"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"a,b\n1,2\n", None),
        (b"", None),
    ],
)
def test_images_are_known_by_their_first_bytes(content: bytes, kind: str | None) -> None:
    assert image_type(content) == kind
