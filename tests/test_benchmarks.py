"""benchmarks/: what `make bench` puts beside app.py answers as it does."""

import base64

from tests.server_process import TENCH, ready


def test_pytorch_behind_the_server_knows_the_tench(tmp_path):
    script = ("-m", "benchmarks.pytorch_eager")
    with ready(tmp_path, script=script, BENCH_MODEL="efficientnet-lite0") as served:
        answer = served.post(json={"image": base64.b64encode(TENCH.read_bytes()).decode()}).json()
        assert (answer["class_id"], answer["class_name"]) == (0, "tench")
        assert served.get("/healthcheck").json()["execution_provider"] == "PyTorch eager"
