"""The message, its content parts, and the bodies that make and change one.

Text is a plain string on input and an object with annotations on output: that is the API, not a slip.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from perdure.wire.kinds import Body, Metadata, Object, Text, WhenBusy

Role = Literal["user", "assistant"]
Detail = Literal["auto", "low", "high"]
MessageStatus = Literal["in_progress", "incomplete", "completed"]
IncompleteReason = Literal["content_filter", "max_tokens", "run_cancelled", "run_expired", "run_failed"]


class ImageUrl(Body, kw_only=True):
    """An image by its address."""

    url: str
    detail: Detail | None = None


class ImageFile(Body, kw_only=True):
    """An image by its file."""

    file_id: str
    detail: Detail | None | UnsetType = UNSET


class NewText(Body, tag_field="type", tag="text", kw_only=True):
    """Text on its way in."""

    text: Text


class NewImageUrl(Body, tag_field="type", tag="image_url", kw_only=True):
    """An image address on its way in."""

    image_url: ImageUrl


class NewImageFile(Body, tag_field="type", tag="image_file", kw_only=True):
    """An image file on its way in."""

    image_file: ImageFile


NewPart = NewText | NewImageUrl | NewImageFile


class AttachmentTool(Body, kw_only=True):
    """The tool that an attachment is for."""

    type: Literal["code_interpreter", "file_search"]


class Attachment(Body, kw_only=True):
    """A file for the thread's tools."""

    file_id: str | None = None
    tools: list[AttachmentTool] | None = None


# Empty content is refused where a message is made, in a text of its own; here it is only said in the JSON schema.
NewContent = (
    Annotated[Text, Meta(extra_json_schema={"minLength": 1})]
    | Annotated[list[NewPart], Meta(extra_json_schema={"minItems": 1})]
)


class CreateMessage(Body, kw_only=True):
    """POST /threads/{id}/messages, and the messages of a new thread or run."""

    role: Role
    content: NewContent
    attachments: list[Attachment] | None = None
    metadata: Metadata | None = None


class AddMessage(CreateMessage, kw_only=True):
    """POST /threads/{id}/messages."""

    x_when_busy: WhenBusy | None = None


class ModifyMessage(Body, kw_only=True):
    """POST /threads/{id}/messages/{id}. Content is changed by an extension: the hosted API changed metadata only."""

    metadata: Metadata | None | UnsetType = UNSET
    x_content: NewContent | None = None


class TextValue(Object, kw_only=True):
    """Text with its annotations; their offsets count code points of `value`."""

    value: str
    annotations: list[dict[str, Any]]


class TextPart(Object, tag_field="type", tag="text", kw_only=True):
    """Text."""

    text: TextValue


class ImageUrlPart(Object, tag_field="type", tag="image_url", kw_only=True):
    """An image by its address."""

    image_url: ImageUrl


class ImageFilePart(Object, tag_field="type", tag="image_file", kw_only=True):
    """An image by its file."""

    image_file: ImageFile


class RefusalPart(Object, tag_field="type", tag="refusal", kw_only=True):
    """What the model said instead of an answer."""

    refusal: str


ContentPart = TextPart | ImageUrlPart | ImageFilePart | RefusalPart


class IncompleteMessage(Object, kw_only=True):
    """Why a message is incomplete."""

    reason: IncompleteReason


class Message(Object, kw_only=True):
    """A message. The hosted server left `status` and its three companions out of plain answers; the spec has them."""

    id: str
    object: Literal["thread.message"] = "thread.message"
    created_at: int
    assistant_id: str | None
    thread_id: str
    run_id: str | None
    status: MessageStatus
    incomplete_details: IncompleteMessage | None
    incomplete_at: int | None
    completed_at: int | None
    role: Role
    content: list[ContentPart]
    attachments: list[Attachment]
    metadata: Metadata


NewMessages = Annotated[list[CreateMessage], Meta(max_length=100_000)]


def content_parts(content: str | list[NewPart]) -> list[ContentPart]:
    """Return content as it is stored: text becomes an object, an image's detail defaults to auto [recorded]."""
    if isinstance(content, str):
        return [TextPart(text=TextValue(value=content, annotations=[]))]
    return [_content_part(part) for part in content]


def _content_part(part: NewPart) -> ContentPart:
    if isinstance(part, NewText):
        return TextPart(text=TextValue(value=part.text, annotations=[]))
    if isinstance(part, NewImageUrl):
        return ImageUrlPart(image_url=ImageUrl(url=part.image_url.url, detail=part.image_url.detail or "auto"))
    return ImageFilePart(image_file=ImageFile(file_id=part.image_file.file_id, detail=part.image_file.detail or "auto"))
