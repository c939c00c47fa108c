"""The steps before the network, as they stand in the ONNX file."""

from string import Template

import onnx
from onnx import compose

from conversion.graph_pixels import PIXELS
from conversion.trained_model import TrainedModel

OPSET = 20  # 18 is the first with an antialiased Resize; ONNX Runtime 1.31 runs 20 without a warning

# ONNX's textual syntax. The resize works on the uint8 pixels: on float, or with any other setting, it drifts from
# Pillow's by up to 105 of 255. On channels-last pixels, because transposing a large image first costs more than
# resizing it. Pixels of the model's size skip it: OpenVINO takes half a millisecond, a fifth of its time, for these.
GRAPH = Template("""
<ir_version: 10, opset_import: ["": $opset]>
preprocessing (uint8[batch, height, width, 3] image) => (float[batch, $channels, $height, $width] pixels)
<
    int64[2] size = {$height, $width}, float white = {255},
    float[$channels] mean = {$mean}, float[$channels] std = {$std}
>
{
    image_size = Shape <start = 1, end = 3> (image)
    same_sides = Equal (image_size, size)
    alike = Cast <to = 7> (same_sides)
    both = ReduceMin <keepdims = 0> (alike)
    is_resized = Cast <to = 9> (both)
    resized = If (is_resized) <
        then_branch = keep () => (uint8[batch, $height, $width, 3] kept) { kept = Identity (image) },
        else_branch = resize () => (uint8[batch, $height, $width, 3] squashed) {
            sides = Constant <value = int64[2] {$height, $width}> ()
            squashed = Resize <
                mode = "linear", antialias = 1, exclude_outside = 1,
                coordinate_transformation_mode = "half_pixel", axes = [1, 2]
            > (image, , , sides)
        }
    >
    $levels
    unit = Div (levels, white)
    centred = Sub (unit, mean)
    normalized = Div (centred, std)
    pixels = Transpose <perm = [0, 3, 1, 2]> (normalized)
}
""")

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


def preprocessing_graph(trained: TrainedModel) -> onnx.ModelProto:
    """Return the steps from `image`, uint8 [batch, height, width, 3], to PIXELS, float32 [batch, channels, *size]."""
    height, width = trained.size
    text = GRAPH.substitute(
        opset=OPSET,
        channels=len(trained.mean),
        height=height,
        width=width,
        mean=", ".join(map(repr, trained.mean)),
        std=", ".join(map(repr, trained.std)),
        levels=GRAY_LEVELS if len(trained.mean) == 1 else RGB_LEVELS,
    )
    prefix = PIXELS.removesuffix("pixels")  # keeps its names apart from the network's
    return compose.add_prefix(onnx.parser.parse_model(text), prefix, rename_inputs=False)
