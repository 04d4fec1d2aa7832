"""Images of conversations: read from their data: URLs, and given to the engine beside a prompt's exact token ids.

vLLM's processor expands each placeholder of a prompt into the image's ids, whatever else the prompt holds. So it gets the new
ids, and of older images their placeholders alone, never sampled ids or those that an earlier call has expanded. Its caches
key images by their bytes, and process only new ones.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import threading
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from gymq.cache import byte_cache
from gymq.errors import CallError, one_line
from gymq.wire.calls import ImageSpan
from gymq.wire.message import Message

#: Bytes of decoded images that are kept, so that an image is decoded once, not at each turn.
CACHE_BYTES = 256 << 20


class Picture(NamedTuple):
    """An image of a conversation.

    Args:
        message: the index of its message.
        name: a digest of its URL.
        media: the image, as vLLM takes it.
    """

    message: int
    name: str
    media: Any


class _Made(NamedTuple):
    """A processed image.

    Args:
        data: the model's input; None: the engine has it.
        hash: its key in vLLM's caches.
        mask: which of its ids stand for the image; None: all.
    """

    data: Any
    hash: str
    mask: Any


class Images:
    """The images of all conversations, decoded and processed by vLLM.

    Args:
        renderer: vLLM's.
        model_config: vLLM's description of the model.
    """

    def __init__(self, renderer: Any, model_config: Any) -> None:
        self._renderer = renderer
        #: Images that a prompt may have.
        self.limit = 0
        if model_config.supports_multimodal_inputs:
            from vllm.multimodal.media import ImageMediaIO

            self.limit = renderer.mm_processor.info.allowed_mm_limits.get("image", 0)
            options = model_config.multimodal_config.media_io_kwargs
            self._load = ImageMediaIO(**options.get("image", {})).load_bytes
        self._media = byte_cache(_weigh, CACHE_BYTES)
        self._lock = threading.Lock()

    @property
    def template(self) -> str | None:
        """The processor's chat template, where some models have theirs instead of the tokenizer."""
        return getattr(self._renderer.mm_processor.info.get_hf_processor(), "chat_template", None) if self.limit else None

    async def read(self, messages: Iterable[Message]) -> Pictures | None:
        """Return a conversation's images, decoded; None: it has none.

        Raises:
            CallError: `model`: the model takes none, or fewer; one is no data: URL or cannot be decoded.
        """
        image_urls = urls(messages)
        if not image_urls:
            return None
        if not self.limit:
            raise CallError("model", f"messages[{image_urls[0][0]}] has an image, and this model takes none")
        if len(image_urls) > self.limit:
            raise CallError(
                "model",
                f"the conversation has {len(image_urls)} images, and the engine takes {self.limit} in a prompt; "
                "raise --engine limit_mm_per_prompt",
            )
        return Pictures(self, await asyncio.to_thread(self._read, image_urls))

    def _read(self, image_urls: list[tuple[int, str]]) -> list[Picture]:
        return [Picture(message, *self._open(message, url)) for message, url in image_urls]

    def _open(self, message: int, url: str) -> tuple[str, Any]:
        name = hashlib.blake2b(url.encode(), digest_size=16).hexdigest()
        with self._lock:
            media = self._media.get(name)
        if media is None:
            data = content(message, url)
            try:
                media = self._load(data)
            except Exception as error:  # Pillow raises many kinds
                raise CallError("model", one_line(f"messages[{message}]: an image cannot be read: {error}")) from None
            with self._lock:
                self._media[name] = media
        return name, media

    async def expand(self, ids: list[int], pictures: list[Picture]) -> tuple[list[int], list[tuple[int, int]], list[_Made]]:
        """Put each image's ids in its placeholder's place.

        Args:
            ids: ids with as many placeholders.
            pictures: the images.

        Returns:
            the expanded ids, each image's start and end in them, and the processed images.

        Raises:
            CallError: `model`: the processor refuses an image, or finds no placeholder for it.
        """
        prompt = {"prompt_token_ids": ids, "multi_modal_data": {"image": [picture.media for picture in pictures]}}
        try:
            made = await self._renderer.process_for_engine_async(prompt, time.time())
        except AssertionError:  # vLLM has found no placeholder
            raise CallError("model", "the model's chat template writes no place for an image where there is one") from None
        except Exception as error:  # each model's processor has its own
            raise CallError("model", one_line(f"vLLM's processor refuses an image: {error}")) from None
        places = made["mm_placeholders"]["image"]
        spans = [(place.offset, place.offset + place.length) for place in places]
        parts = zip(made["mm_kwargs"]["image"], made["mm_hashes"]["image"], places, strict=True)
        processed = [_Made(data, name, place.is_embed) for data, name, place in parts]
        expanded: list[int] = made["prompt_token_ids"]
        (start, _), mask = spans[0], processed[0].mask
        image = expanded[start if mask is None else start + int(mask.int().argmax())]
        if expanded.count(image) > sum(expanded[start:end].count(image) for start, end in spans):
            text = self._renderer.get_tokenizer().decode([image])
            raise CallError("model", one_line(f"the text has the placeholder {text!r} where there is no image; take it out"))
        return expanded, spans, processed

    async def process(self, pictures: list[Picture]) -> list[_Made]:
        """Return processed images, whatever text stands around them."""
        text = self._renderer.mm_processor.dummy_inputs.get_dummy_text({"image": len(pictures)})
        ids = self._renderer.get_tokenizer().encode(text, add_special_tokens=False)
        return (await self.expand(ids, pictures))[2]


class Pictures:
    """The images of one conversation, in order, during one call.

    Args:
        images: processes them.
        pictures: the images.
    """

    def __init__(self, images: Images, pictures: list[Picture]) -> None:
        self._images = images
        self._pictures = pictures
        self._made: list[_Made | None] = [None] * len(pictures)
        #: Digests of their URLs.
        self.names = [picture.name for picture in pictures]

    def before(self, message: int) -> int:
        """Return how many stand in the messages before this index."""
        return sum(picture.message < message for picture in self._pictures)

    async def expand(self, ids: list[int], first: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Put each image's ids in its placeholder's place; see `token_prompt.Pictures`.

        Args:
            ids: the prompt's token ids, with a placeholder for each image.
            first: the index of the first image that they hold.

        Raises:
            CallError: `model`: the processor refuses an image, or finds no placeholder for it.
        """
        await self._make(first)
        if first == len(self._pictures):
            return ids, []
        expanded, spans, self._made[first:] = await self._images.expand(ids, self._pictures[first:])
        return expanded, spans

    async def input(self, ids: list[int], places: list[ImageSpan]) -> Any:
        """Return the engine's input; each call processes the images anew, as the engine may have dropped them.

        Args:
            ids: the prompt's ids.
            places: the images in it.
        """
        from vllm.inputs import mm_input
        from vllm.multimodal.inputs import PlaceholderRange

        await self._make(len(self._pictures))
        made, self._made = [image for image in self._made if image is not None], [None] * len(self._pictures)
        ranges = [PlaceholderRange(at.start, at.end - at.start, image.mask) for at, image in zip(places, made, strict=True)]
        data = {"image": [image.data for image in made]}
        return mm_input(ids, data, {"image": [image.hash for image in made]}, {"image": ranges})

    async def _make(self, count: int) -> None:
        """Process the first images, up to this count, of which all or none are processed."""
        if count and self._made[0] is None:
            self._made[:count] = await self._images.process(self._pictures[:count])


def _weigh(media: Any) -> int:
    """Return the bytes of an image: those of its pixels, and of the file that vLLM keeps beside them."""
    width, height = media.media.size
    return int(4 * width * height + len(media.original_bytes))


def urls(messages: Iterable[Message]) -> list[tuple[int, str]]:
    """Return the URLs of a conversation's images, each with the index of its message.

    Raises:
        CallError: `model`: a message has a part that is neither text nor an image.
    """
    image_urls: list[tuple[int, str]] = []
    for index, message in enumerate(messages):
        for part in message.content if isinstance(message.content, list) else ():
            kind = part.get("type")
            if kind == "image_url":
                image = part.get("image_url")
                url = image.get("url") if isinstance(image, dict) else image
                image_urls.append((index, url if isinstance(url, str) else ""))
            elif kind != "text":
                raise CallError(
                    "model", one_line(f"messages[{index}] has a part of type {kind!r}; vllm takes text and images only")
                )
    return image_urls


def content(message: int, url: str) -> bytes:
    """Return the bytes of a data: URL.

    Args:
        message: the index of its message, for errors.
        url: the URL.

    Raises:
        CallError: `model`: it is no data: URL, or its base64 is broken.
    """
    head, comma, data = url.partition(",")
    if not url.startswith("data:"):
        raise CallError(
            "model", one_line(f"messages[{message}]: an image is at {url[:80]!r}, which is not opened; give it as a data: URL")
        )
    if not comma or not head.endswith(";base64"):
        raise CallError("model", f"messages[{message}]: an image's data: URL is not base64")
    try:
        return base64.b64decode(data, validate=True)
    except ValueError as error:
        raise CallError("model", one_line(f"messages[{message}]: an image's base64 is broken: {error}")) from None
