"""The steps before the network, as they stand in the ONNX file."""

from conversion.trained_model import TrainedModel

OPSET = 20  # 18 is the first with an antialiased Resize; ONNX Runtime 1.31 runs 20 without a warning

# Pillow's luma (ITU-R 601-2), to the bit: the sum in whole numbers, which no execution provider computes in less
# precision. Not so the division, for which OpenVINO rounds where ONNX says to cut.
GREY_CONSTANTS = """,
    int32[3] luma = {19595, 38470, 7471}, int32 half = {32768}, float one = {65536}, int64[1] channel = {3}"""
GREY = """
    colours = Cast <to = 6> (resized)
    weighted = Mul (colours, luma)
    sum = ReduceSum (weighted, channel)
    raised = Add (sum, half)
    to_cut = Cast <to = 1> (raised)
    exact = Div (to_cut, one)
    grey = Floor (exact)"""


def preprocessing_text(trained: TrainedModel) -> str:
    """Return the steps before the network in ONNX's own textual syntax."""
    channels, (height, width) = len(trained.mean), trained.size
    mean, std = (", ".join(map(repr, values)) for values in (trained.mean, trained.std))
    constants, grey, colours = (GREY_CONSTANTS, GREY, "grey") if channels == 1 else ("", "", "resized")
    # The resize works on the uint8 pixels: in float, or with another setting here, it drifts from Pillow's by up to 105
    # of 255. On channels-last pixels, because transposing a large picture first costs more than resizing it. Pixels of
    # the model's size go past it: OpenVINO takes half a millisecond, a fifth of its time, to resize these.
    return f"""
<ir_version: 10, opset_import: ["": {OPSET}]>
preprocessing (uint8[batch, height, width, 3] image) => (float[batch, {channels}, {height}, {width}] pixels)
<
    int64[2] size = {{{height}, {width}}}, float white = {{255}},
    float[{channels}] mean = {{{mean}}}, float[{channels}] std = {{{std}}}{constants}
>
{{
    image_size = Shape <start = 1, end = 3> (image)
    same_sides = Equal (image_size, size)
    alike = Cast <to = 7> (same_sides)
    both = ReduceMin <keepdims = 0> (alike)
    is_resized = Cast <to = 9> (both)
    resized = If (is_resized) <
        then_branch = keep () => (uint8[batch, {height}, {width}, 3] kept) {{ kept = Identity (image) }},
        else_branch = resize () => (uint8[batch, {height}, {width}, 3] squashed) {{
            sides = Constant <value = int64[2] {{{height}, {width}}}> ()
            squashed = Resize <
                mode = "linear", antialias = 1, exclude_outside = 1,
                coordinate_transformation_mode = "half_pixel", axes = [1, 2]
            > (image, , , sides)
        }}
    >{grey}
    levels = Cast <to = 1> ({colours})
    unit = Div (levels, white)
    centred = Sub (unit, mean)
    normalized = Div (centred, std)
    pixels = Transpose <perm = [0, 3, 1, 2]> (normalized)
}}
"""
