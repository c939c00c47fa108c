"""The inputs of a request, parsed, and its images, decoded within limits of time and memory."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import BoundedSemaphore, Lock
from typing import Any

import numpy as np

from runtime.base64_text import decode_base64
from runtime.decoding import CpuBudget
from runtime.errors import InvalidInput, Unavailable, release_frames


@dataclass(frozen=True)
class Inputs:
    """What a request asks for. The items of `images` are not checked yet; load_images does that."""

    images: list
    is_batch: bool  # the request has "images", not "image"
    top_k: int
    with_probabilities: bool


def parse_inputs(model_inputs: Any, max_images: int) -> Inputs:
    """Check the JSON of a request. Raises InvalidInput."""
    if not isinstance(model_inputs, dict):
        raise InvalidInput('expected a JSON object such as {"image": "<base64>"}')
    is_batch = "images" in model_inputs
    if is_batch == ("image" in model_inputs):
        raise InvalidInput('expected either "image", one image as base64, or "images", a list of them')
    images = model_inputs["images"] if is_batch else [model_inputs["image"]]
    if not isinstance(images, list) or not 1 <= len(images) <= max_images:
        raise InvalidInput(f'"images" must be a list of 1 to {max_images} images')
    top_k = model_inputs.get("top_k", 5)
    if type(top_k) is not int or top_k < 1:
        raise InvalidInput('"top_k" must be an integer of at least 1')
    with_probabilities = model_inputs.get("probabilities", False)
    if type(with_probabilities) is not bool:
        raise InvalidInput('"probabilities" must be true or false')
    return Inputs(images, is_batch, top_k, with_probabilities)


class LargeImageSlot:
    """Lets one request at a time decode large images; at most `requests` hold the slot or wait for it."""

    def __init__(self, requests: int) -> None:
        self._places, self._slot = BoundedSemaphore(requests), Lock()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Wait for the slot and hold it while the context lasts. Raises Unavailable if too many requests wait."""
        if not self._places.acquire(blocking=False):
            raise Unavailable("other large images are being decoded")
        try:
            with self._slot:
                yield
        finally:
            self._places.release()


def load_images(inputs: Inputs, preprocessor: Any, slot: LargeImageSlot) -> tuple[np.ndarray, list[dict]]:
    """Return the images at the model's size, uint8 [batch, height, width, 3], and the format and size of each.

    `preprocessor` is a model.ImagePreprocessor. The images of a request share one CpuBudget. Raises InvalidInput, which
    names the image if `images` was sent, or Unavailable if too many large images are being decoded.
    """
    pixels, descriptions = [], []
    budget = CpuBudget()
    has_slot = False
    with ExitStack() as held:
        for n, image in enumerate(inputs.images):
            try:
                content = decode_base64(image) if isinstance(image, str) else image
                if not isinstance(content, bytes | np.ndarray):
                    raise InvalidInput("an image must be base64 text")
                opened = [preprocessor.open(content, budget)]  # popped below, so that nothing here keeps it
                if not has_slot and preprocessor.is_large(opened[0]):
                    held.enter_context(slot.hold())
                    has_slot = True
                size = {"width": opened[0].width, "height": opened[0].height}
                descriptions.append({"format": opened[0].format or "pixels"} | size)
                pixels.append(preprocessor(opened.pop()))
            except InvalidInput as error:
                release_frames(error)  # frees the decoded image before the next request has the slot
                raise InvalidInput(f"images[{n}]: {error}" if inputs.is_batch else str(error)) from None
    return np.stack(pixels), descriptions
