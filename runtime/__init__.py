"""What runs the ONNX file, and what app.py and model.py need for it. Imports neither torch nor Sanic."""
