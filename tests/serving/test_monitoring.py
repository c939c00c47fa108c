"""docs/operations.md: its queries select existing metrics, and only of requests that classify."""

import re

from prometheus_client.parser import text_string_to_metric_families

from tests.server_process import ROOT, ready

MATCHES = {"=": str.__eq__, "!=": str.__ne__, "=~": lambda value, pattern: bool(re.fullmatch(pattern, value))}


def test_documented_queries_select_requests_that_classify(tmp_path):
    with ready(tmp_path, stub=True) as served:
        failed = served.post(data=b"fail", headers={"Content-Type": "image/jpeg"})
        assert failed.status_code == 500
        families = list(text_string_to_metric_families(served.get("/metrics").text))
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    lines = "".join(re.findall(r"```promql\n(.+?)```", page, re.DOTALL))
    selectors = re.findall(r"(classifier_\w+)(?:{(.*?)})?", lines)
    assert len(selectors) == 4
    for name, conditions in selectors:
        wanted = re.findall(r'(\w+)(=~|!=|=)"(.*?)"', conditions)
        selected = [
            sample
            for family in families
            for sample in family.samples
            if sample.name == name and all(MATCHES[how](sample.labels[label], value) for label, how, value in wanted)
        ]
        assert selected, f"nothing is {name}{{{conditions}}}"
        assert "other" not in {sample.labels.get("route") for sample in selected}
