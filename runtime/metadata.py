"""The metadata of an ONNX file, validated as strictly as a request."""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Name = Annotated[str, Meta(min_length=1)]
Side = Annotated[int, Meta(ge=1, le=4096)]  # of the model's input, in pixels


class Preprocessing(msgspec.Struct, frozen=True):
    """Height and width of the model's input; mean and std per channel, one for gray or three for RGB."""

    size: tuple[Side, Side]
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Meta(gt=0)], ...]
    crop_pct: Annotated[float, Meta(ge=0.1, le=1)] | None = None  # none: the image is squashed
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) in (1, 3):
            raise ValueError("mean and std must have one entry each, or three")


class Metadata(msgspec.Struct, frozen=True):
    """What a file describes. `activation` is the last step, which returns probabilities; None if it is not named."""

    model: Name
    weights_digest: Name
    preprocessing: Preprocessing
    class_names: Annotated[tuple[Name, ...], Meta(min_length=1)]
    activation: Literal["softmax", "sigmoid", "none"] | None = None


def parse(texts: Mapping[str, str]) -> Metadata:
    """Return the metadata from the texts in a file. Raises ValueError with the reason."""
    try:
        as_json = {name: msgspec.json.decode(texts[name]) for name in ("preprocessing", "class_names") if name in texts}
        return msgspec.convert({**texts, **as_json}, Metadata)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"invalid metadata: {error}") from error
