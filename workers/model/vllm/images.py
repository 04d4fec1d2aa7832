"""Images of conversations: read from their data: URLs, and given to the engine beside a prompt's exact token ids.

vLLM's processor expands each placeholder of a prompt into the ids that the image has there, whatever else the prompt holds. So
it never sees what an earlier call has expanded, or what the model sampled: it gets the ids that are new, and of the older
images their placeholders alone. Its caches know an image by its bytes, and only a new one is worked on.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import threading
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from gymq.cache import Cache
from gymq.errors import CallError, one_line
from gymq.wire.calls import ImageSpan
from gymq.wire.message import Message

#: Bytes of decoded images that are kept, so that an image is decoded once and not at each turn.
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
    """What the processor made of an image.

    Args:
        data: what the model gets; None: the engine has it.
        hash: what vLLM's caches know it by.
        mask: which of its ids the model sees as image; None: all.
    """

    data: Any
    hash: str
    mask: Any


class Images:
    """Reads images, and asks vLLM's processor what they become.

    Args:
        renderer: vLLM's.
        model_config: vLLM's description of the model.
    """

    def __init__(self, renderer: Any, model_config: Any) -> None:
        self._renderer = renderer
        #: How many a prompt may have.
        self.most = 0
        if model_config.supports_multimodal_inputs:
            from vllm.multimodal.media import ImageMediaIO

            self.most = renderer.mm_processor.info.allowed_mm_limits.get("image", 0)
            options = model_config.multimodal_config.media_io_kwargs
            self._open = ImageMediaIO(**options.get("image", {})).load_bytes
        self._kept: Cache[Any] = Cache(CACHE_BYTES)
        self._lock = threading.Lock()

    @property
    def template(self) -> str | None:
        """The processor's chat template: some models have theirs there, and the tokenizer has none."""
        return getattr(self._renderer.mm_processor.info.get_hf_processor(), "chat_template", None) if self.most else None

    async def read(self, messages: Iterable[Message]) -> Pictures | None:
        """Decode a conversation's images.

        Args:
            messages: the conversation.

        Returns:
            them; None: it has none.

        Raises:
            CallError: `model`: the model takes none, or not so many; one is no data: URL or cannot be read.
        """
        found = urls(messages)
        if not found:
            return None
        if not self.most:
            raise CallError("model", f"messages[{found[0][0]}] has an image, and this model takes none")
        if len(found) > self.most:
            raise CallError(
                "model",
                f"the conversation has {len(found)} images, and the engine takes {self.most} in a prompt; "
                "--engine limit_mm_per_prompt says how many",
            )
        return Pictures(self, await asyncio.to_thread(self._read, found))

    def _read(self, found: list[tuple[int, str]]) -> list[Picture]:
        return [Picture(message, *self._media(message, url)) for message, url in found]

    def _media(self, message: int, url: str) -> tuple[str, Any]:
        name = hashlib.blake2b(url.encode(), digest_size=16).hexdigest()
        with self._lock:
            media = self._kept.get(name)
        if media is None:
            data = content(message, url)
            try:
                media = self._open(data)
            except Exception as error:  # Pillow raises many kinds
                raise CallError("model", one_line(f"messages[{message}]: an image cannot be read: {error}")) from None
            width, height = media.media.size
            with self._lock:
                self._kept.put(name, media, 4 * width * height + len(data))
        return name, media

    async def expand(self, ids: list[int], pictures: list[Picture]) -> tuple[list[int], list[tuple[int, int]], list[_Made]]:
        """Put each image's ids where its placeholder is.

        Args:
            ids: ids with as many placeholders.
            pictures: the images.

        Returns:
            the expanded ids, the start and the end of each image in them, and what was made of it.

        Raises:
            CallError: `model`: the processor refuses an image, or has found no place for it.
        """
        prompt = {"prompt_token_ids": ids, "multi_modal_data": {"image": [picture.media for picture in pictures]}}
        try:
            made = await self._renderer.process_for_engine_async(prompt, time.time())
        except AssertionError:  # as vLLM says that it found no placeholder
            raise CallError("model", "the model's chat template writes no place for an image where there is one") from None
        except Exception as error:  # each model's processor has its own
            raise CallError("model", one_line(f"vLLM's processor refuses an image: {error}")) from None
        places = made["mm_placeholders"]["image"]
        spans = [(place.offset, place.offset + place.length) for place in places]
        parts = zip(made["mm_kwargs"]["image"], made["mm_hashes"]["image"], places, strict=True)
        found = [_Made(data, name, place.is_embed) for data, name, place in parts]
        expanded: list[int] = made["prompt_token_ids"]
        (start, _), mask = spans[0], found[0].mask
        image = expanded[start if mask is None else start + int(mask.int().argmax())]
        if expanded.count(image) > sum(expanded[start:end].count(image) for start, end in spans):
            text = self._renderer.get_tokenizer().decode([image])
            raise CallError("model", one_line(f"the text has the placeholder {text!r} where there is no image; take it out"))
        return expanded, spans, found

    async def process(self, pictures: list[Picture]) -> list[_Made]:
        """Return what the processor makes of images, whatever text stands around them."""
        text = self._renderer.mm_processor.dummy_inputs.get_dummy_text({"image": len(pictures)})
        ids = self._renderer.get_tokenizer().encode(text, add_special_tokens=False)
        return (await self.expand(ids, pictures))[2]


class Pictures:
    """The images of one conversation, in order, during one call.

    Args:
        images: makes them.
        pictures: the images.
    """

    def __init__(self, images: Images, pictures: list[Picture]) -> None:
        self._images = images
        self._pictures = pictures
        self._made: list[_Made | None] = [None] * len(pictures)
        #: A digest of each one's URL.
        self.names = [picture.name for picture in pictures]

    def before(self, message: int) -> int:
        """How many stand in the messages before one."""
        return sum(picture.message < message for picture in self._pictures)

    async def expand(self, ids: list[int], first: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Put each image's ids where its placeholder is.

        Args:
            ids: ids that hold placeholders.
            first: the image that the first of them stands for.

        Returns:
            the expanded ids, and the start and the end of each image in them.

        Raises:
            CallError: `model`: the processor refuses an image, or has found no place for it.
        """
        await self._make(first)
        if first == len(self._pictures):
            return ids, []
        expanded, spans, self._made[first:] = await self._images.expand(ids, self._pictures[first:])
        return expanded, spans

    async def input(self, ids: list[int], places: list[ImageSpan]) -> Any:
        """The engine's input; asked for again, all is made again, as the engine may have lost what it had.

        Args:
            ids: the prompt's.
            places: where in it the images are.
        """
        from vllm.inputs import mm_input
        from vllm.multimodal.inputs import PlaceholderRange

        await self._make(len(self._pictures))
        made, self._made = [one for one in self._made if one is not None], [None] * len(self._pictures)
        ranges = [PlaceholderRange(at.start, at.end - at.start, one.mask) for at, one in zip(places, made, strict=True)]
        data = {"image": [one.data for one in made]}
        return mm_input(ids, data, {"image": [one.hash for one in made]}, {"image": ranges})

    async def _make(self, count: int) -> None:
        """Have something of the first so many images; none or all of them are made."""
        if count and self._made[0] is None:
            self._made[:count] = await self._images.process(self._pictures[:count])


def urls(messages: Iterable[Message]) -> list[tuple[int, str]]:
    """The URLs of a conversation's images, each with the index of its message.

    Raises:
        CallError: `model`: a message has a part that is neither text nor an image.
    """
    found: list[tuple[int, str]] = []
    for index, message in enumerate(messages):
        for part in message.content if isinstance(message.content, list) else ():
            kind = part.get("type")
            if kind == "image_url":
                image = part.get("image_url")
                url = image.get("url") if isinstance(image, dict) else image
                found.append((index, url if isinstance(url, str) else ""))
            elif kind != "text":
                raise CallError(
                    "model", one_line(f"messages[{index}] has a part of type {kind!r}; vllm takes text and images only")
                )
    return found


def content(message: int, url: str) -> bytes:
    """The bytes of a data: URL.

    Args:
        message: the index of the message that has it.
        url: the URL.

    Raises:
        CallError: `model`: it is none, or its base64 is broken.
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
