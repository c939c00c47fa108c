"""benchmarks/: the PyTorch backend of `make bench` classifies as app.py does."""

import base64

from tests.server_process import TENCH, ready


def test_pytorch_backend_classifies_the_tench(tmp_path):
    script = ("-m", "benchmarks.pytorch_eager")
    with ready(tmp_path, script=script, BENCH_MODEL="efficientnet-lite0") as served:
        result = served.post(json={"image": base64.b64encode(TENCH.read_bytes()).decode()}).json()
        assert (result["class_id"], result["class_name"]) == (0, "tench")
        assert served.get("/healthcheck").json()["execution_provider"] == "PyTorch eager"
