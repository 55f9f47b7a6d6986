"""Embeddings, made by the built-in embedder.

Rule. What can not be done soundly is refused: the vectors were not trained to be cut, and tokens of another tokenizer
mean nothing here.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.responses import Response

from perdure.api.call import answer
from perdure.api.chat import empty_array
from perdure.errors import InvalidRequest, NotFound
from perdure.models.embeddings import DIMENSIONS, EMBEDDER_NAME, MISSING, MOST_TOKENS, Embedded, Embedder, TextTooLong
from perdure.wire.refusals import decode_body

MOST_INPUTS = 2048


class CreateEmbedding(msgspec.Struct, kw_only=True):
    """The body of POST /embeddings. `model` was read before, where the request was sent here."""

    input: str | Annotated[list[Any], Meta(max_length=MOST_INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


_decoder = msgspec.json.Decoder(CreateEmbedding)


async def create_embedding(embedder: Embedder | None, body: bytes) -> Response:
    """POST /embeddings; None where the embedder is not installed. Raises ApiError."""
    if embedder is None:
        raise NotFound(f"There is nothing here that makes embeddings: {MISSING}", param="model", code="model_not_found")
    asked = decode_body(_decoder, body)
    embedded = await _embedded(embedder, _texts(asked))
    as_base64 = asked.encoding_format == "base64"
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.tobytes()).decode() if as_base64 else vector.tolist(),
        }
        for index, vector in enumerate(embedded.vectors)
    ]
    usage = {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens}
    return answer({"object": "list", "data": data, "model": EMBEDDER_NAME, "usage": usage})


def _texts(asked: CreateEmbedding) -> list[str]:
    """Return the texts to embed. Raises InvalidRequest for what can not be embedded."""
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    if not texts:
        raise empty_array("input")
    if not all(isinstance(text, str) for text in texts):
        raise InvalidRequest(
            f"'{EMBEDDER_NAME}' takes no token arrays, which belong to another tokenizer: send 'input' as text "
            "(with LangChain: check_embedding_ctx_length=False).",
            param="input",
            code="invalid_type",
        )
    if not all(texts):
        raise InvalidRequest("Invalid 'input': input cannot be an empty string.", param="input", code="invalid_value")
    if asked.dimensions not in {None, DIMENSIONS}:
        raise InvalidRequest(
            f"'{EMBEDDER_NAME}' makes vectors of {DIMENSIONS} dimensions and was not trained to be cut: leave "
            "'dimensions' out, or set PERDURE_UPSTREAM_URL to a server with another embedding model.",
            param="dimensions",
            code="invalid_value",
        )
    return texts


async def _embedded(embedder: Embedder, texts: list[str]) -> Embedded:
    try:
        return await embedder.embed(texts)
    except TextTooLong as error:
        raise InvalidRequest(
            f"This model's maximum context length is {MOST_TOKENS} tokens, however you requested "
            f"{error.tokens or 'far more'} tokens in one input. Please reduce your input.",
            param="input",
            code="context_length_exceeded",
        ) from None
