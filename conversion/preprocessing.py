"""The preprocessing graph, the steps before the network, and its pixels compared with Pillow's. Imports no torch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from string import Template

import numpy as np
import onnx

from conversion import ConversionError
from model import ImagePreprocessor
from runtime.backends import import_onnxruntime

onnxruntime = import_onnxruntime()  # before a file is written: Ctrl-C during an import exits without removing it
PIXELS = "preprocessing/pixels"  # the tensor between preprocessing and network: float32 [batch, channels, *size]
# Of 255, between the graph's pixels and Pillow's. Both resize in two passes and round after each: halves are rounded
# differently in about one value in fifty, and twice in a few of a million. Any wrong resize is off in many more.
MAX_LEVELS, ONE_LEVEL, MAX_SHARE = 2.01, 1.01, 0.001
OPSET = 20  # 18 is the first with an antialiased Resize; ONNX Runtime 1.31 runs 20 without a warning

# ONNX's textual syntax; $resize and $levels are texts from below. Pixels of the model's size count as preprocessed and
# skip the resize, which would take OpenVINO half a millisecond, a fifth of its time.
GRAPH = """
<ir_version: 10, opset_import: ["": $opset]>
preprocessing (uint8[batch, height, width, 3] image) => (float[batch, $channels, $size] pixels)
< int64[2] size = {$size}, float white = {255}, float[$channels] mean = {$mean}, float[$channels] std = {$std} >
{
    image_size = Shape <start = 1, end = 3> (image)
    same_sides = Equal (image_size, size)
    alike = Cast <to = 7> (same_sides)
    both = ReduceMin <keepdims = 0> (alike)
    is_resized = Cast <to = 9> (both)
    resized = If (is_resized) <
        then_branch = keep () => (uint8[batch, $size, 3] kept) { kept = Identity (image) },
        else_branch = resize () => $resize
    >
    $levels
    unit = Div (levels, white)
    centred = Sub (unit, mean)
    normalized = Div (centred, std)
    pixels = Transpose <perm = [0, 3, 1, 2]> (normalized)
}
"""

# On uint8 pixels: on float, or with any other setting, it drifts from Pillow's by up to 105 of 255. On channels-last
# pixels, because transposing a large image first costs more than resizing it.
RESIZE = """Resize <
    mode = $mode, antialias = 1, exclude_outside = 1, coordinate_transformation_mode = "half_pixel", axes = [1, 2]
> (image, , , sides)"""

SQUASH = f"""(uint8[batch, $size, 3] squashed) {{
            sides = Constant <value = int64[2] {{$size}}> ()
            squashed = {RESIZE}
        }}"""

# As ImagePreprocessor.fit: float64 and the rounding of torchvision's and timm's Python.
CROP = f"""(uint8[batch, $size, 3] cropped)
        < double[2] least = {{$least}}, double[2] least_other = {{$least_other}}, double half = {{0.5}},
          double[2] target = {{$size}}, int64[2] swap = {{1, 0}}, int64[2] axes = {{1, 2}} >
        {{
            given = Cast <to = 11> (image_size)
            given_other = Gather (given, swap)
            product = Mul (given, least_other)
            quotient = Div (product, given_other)
            whole = $rounding (quotient)
            scaled = Max (least, whole)
            sides = Cast <to = 7> (scaled)
            scaled_image = {RESIZE}
            excess = Sub (scaled, target)
            margin = Mul (excess, half)
            offset = Round (margin)
            start = Cast <to = 7> (offset)
            limit = Add (offset, target)
            end = Cast <to = 7> (limit)
            cropped = Slice (scaled_image, start, end, axes)
        }}"""

RGB_LEVELS = "levels = Cast <to = 1> (resized)"

# Pillow's luma (ITU-R 601-2), to the bit: the sum in integers, which no backend computes in less precision. The
# division is in float, because OpenVINO rounds integers where ONNX truncates them.
GRAY_LEVELS = """
    luma = Constant <value = int32[3] {19595, 38470, 7471}> ()
    half = Constant <value = int32 {32768}> ()
    one = Constant <value = float {65536}> ()
    channel = Constant <value = int64[1] {3}> ()
    colors = Cast <to = 6> (resized)
    weighted = Mul (colors, luma)
    sum = ReduceSum (weighted, channel)
    rounded = Add (sum, half)
    scaled = Cast <to = 1> (rounded)
    exact = Div (scaled, one)
    levels = Floor (exact)
"""


def preprocessing_graph(preprocessor: ImagePreprocessor) -> onnx.ModelProto:
    """Return the steps from `image`, uint8 [batch, height, width, 3], to PIXELS, float32 [batch, channels, *size]."""
    size, mean, least = preprocessor.size, preprocessor.mean, preprocessor.scaled_size
    resize = SQUASH if preprocessor.crop_pct is None else CROP
    levels = GRAY_LEVELS if len(mean) == 1 else RGB_LEVELS
    lists = {"size": size, "mean": mean, "std": preprocessor.std, "least": least, "least_other": least[::-1]}
    values = {name: ", ".join(map(repr, entries)) for name, entries in lists.items()}
    values["mode"] = '"linear"' if preprocessor.interpolation == "bilinear" else '"cubic", cubic_coeff_a = -0.5'
    values["rounding"] = "Floor" if least[0] == least[1] else "Round"
    text = GRAPH.replace("$resize", resize).replace("$levels", levels)
    text = Template(text).substitute(values, opset=OPSET, channels=len(mean))
    return onnx.compose.add_prefix(onnx.parser.parse_model(text), PIXELS.removesuffix("pixels"), rename_inputs=False)


def open_graph(path: Path, output: str = PIXELS) -> Callable[[np.ndarray], np.ndarray]:
    """Return a file's steps from `image`, uint8 [batch, height, width, 3], to `output`. ValueError if it has none."""
    part = onnx.load(path)
    if output != part.graph.output[0].name:  # the extractor leaves out what only subgraphs use
        part = onnx.utils.Extractor(part).extract_model(["image"], [output])
    session = onnxruntime.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"image": pixels})[0]


def compare_pixels(names: Sequence[str], graph: np.ndarray, reference: np.ndarray, std: Sequence[float]) -> float:
    """Return the largest difference of two arrays of normalized pixels, in levels of 255.

    Both are float32 [images, channels, *size]. Raises ConversionError, with the image's name, if it is over MAX_LEVELS
    or if more than MAX_SHARE of the values differ by more than ONE_LEVEL.
    """
    levels = np.abs((graph - reference) * np.reshape(std, (-1, 1, 1))) * 255
    for name, image in zip(names, levels, strict=True):
        most, share = image.max(), (image > ONE_LEVEL).mean()
        if not (most <= MAX_LEVELS and share <= MAX_SHARE):
            many = f"{share:.2%} of them by more than 1; 2 and {MAX_SHARE:.1%} are allowed"
            raise ConversionError(f"{name}: the graph's pixels are up to {most:.1f} of 255 from Pillow's, {many}")
    return float(levels.max())
