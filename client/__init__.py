"""A deployed endpoint as its caller sees it: for test_server.py, and in part for test_onnx.py."""
