"""What both peers do with an image, as one would write it in ten minutes around the same ONNX file.

    make bench-peers

Imported by the servers in this folder.
"""

import base64
import io
import os

import numpy as np
import onnxruntime
from PIL import Image

PORT = int(os.environ["PORT"])


def load() -> onnxruntime.InferenceSession:
    """Open the model with one thread per call, measured as the fastest for many callers."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(os.environ["MODEL_PATH"], options, providers=["CPUExecutionProvider"])


def classify(session: onnxruntime.InferenceSession, image: str) -> dict:
    """Return the most probable class of an image in base64."""
    resized = Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB").resize((224, 224), Image.BILINEAR)
    probabilities = session.run(None, {"image": np.asarray(resized)[None]})[0][0]
    top = int(probabilities.argmax())
    return {"class_id": top, "probability": float(probabilities[top])}
