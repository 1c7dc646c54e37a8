"""OpenAI's embeddings in Gemini's words, and back.

Leaves out prompts of tokens, which only the model that made them can read.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from typing import Any

from llm_proxy.dialects.reading import mapping, sequence
from llm_proxy.gateway.translate.fields import Fields
from llm_proxy.gateway.translate.losses import BadRequest, Losses

MOST = 100  # texts that Gemini takes at once


def write_gemini(body: Any, model: str, losses: Losses) -> Any:
    """The body of batchEmbedContents. Raises BadRequest, CannotSay."""
    fields = Fields(body)
    fields.leave("model", "encoding_format")
    fields.loosen(losses, "user")
    texts = _texts(fields.any("input"))
    size = fields.take("dimensions", int, 0)
    fields.finish(losses)
    wanted = {"outputDimensionality": size} if size else {}
    return {
        "requests": [{"model": f"models/{model}", "content": {"parts": [{"text": text}]}} | wanted for text in texts]
    }


def _texts(given: Any) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise BadRequest("input", "must be a text or a list of texts")
    if len(texts) > MOST:
        raise BadRequest("input", f"must be at most {MOST} texts, because Gemini takes no more at once")
    return texts


def read_gemini(body: Any, asked: Mapping[str, Any]) -> Any:
    """The answer as OpenAI gives it, in the encoding that was `asked` for. Gemini counts no tokens here."""
    packed = asked.get("encoding_format") == "base64"
    vectors = [sequence(mapping(one).get("values")) for one in sequence(mapping(body).get("embeddings"))]
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _packed(vector) if packed else vector}
            for index, vector in enumerate(vectors)
        ],
        "model": asked.get("model"),
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }


def _packed(vector: list[Any]) -> str:
    numbers = [float(one) if isinstance(one, int | float) else 0.0 for one in vector]
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
