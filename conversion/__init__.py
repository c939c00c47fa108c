"""What converts a PyTorch model to ONNX, and verifies the file. The only package that imports torch."""
