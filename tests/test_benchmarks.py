"""benchmarks/: PyTorch as a backend classifies as app.py does, and a candidate's workers count as its own."""

import base64
import subprocess
import sys

import pytest

from tests.server_process import ROOT, TENCH, ready


def test_pytorch_backend_classifies_the_tench(tmp_path):
    script = ("-m", "benchmarks.pytorch_eager")
    with ready(tmp_path, script=script, BENCH_MODEL="efficientnet-lite0") as served:
        result = served.post(json={"image": base64.b64encode(TENCH.read_bytes()).decode()}).json()
        assert (result["class_id"], result["class_name"]) == (0, "tench")
        assert served.get("/healthcheck").json()["execution_provider"] == "PyTorch eager"


WORKER = "while time.process_time() < 0.3: pass\nprint(flush=True)\ntime.sleep(60)"
LEADER = "subprocess.Popen([sys.executable, sys.argv[1]]).wait()"
MEASURE = """
bench.adopt_orphans()
before = bench.own_ticks()
leader = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=subprocess.PIPE, start_new_session=True)
leader.stdout.readline()  # the worker has used its time
leader.kill()
leader.wait()
bench.stop_orphans(leader.pid)
print(bench.own_ticks() - before >= 0.3 * bench.os.sysconf("SC_CLK_TCK"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks run on Linux alone")
def test_cpu_time_of_workers_left_behind_is_the_candidates_own(tmp_path):
    (tmp_path / "worker.py").write_text(f"import time\n{WORKER}")
    (tmp_path / "leader.py").write_text(f"import subprocess, sys\n{LEADER}")
    measure = f"import subprocess, sys\nfrom benchmarks import bench\n{MEASURE}"
    command = [sys.executable, "-c", measure, tmp_path / "leader.py", tmp_path / "worker.py"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("True\n", "")
