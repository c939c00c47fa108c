"""onnx_file.py: the same metadata as the onnx package reads, and an error for anything else."""

import onnx
import pytest
from onnx import helper, parser

from runtime.onnx_file import read_metadata
from tests.server_process import MODEL_PATH


def small(**metadata):
    model = parser.parse_model('<ir_version: 10, opset_import: ["": 20]> g (float[1] x) => (float[1] y) {y = Abs (x)}')
    helper.set_model_props(model, metadata)
    return model.SerializeToString()


def test_the_metadata_is_what_the_onnx_package_reads():
    expected = {entry.key: entry.value for entry in onnx.load(MODEL_PATH).metadata_props}
    assert read_metadata(MODEL_PATH) == expected
    assert len(expected) >= 4


@pytest.mark.parametrize("metadata", [{}, {"a": ""}, {"": "b"}, {"ä": "\U0001f41f" * 200, "b": "1"}])
def test_texts_of_any_length_and_script_are_read(tmp_path, metadata):
    (tmp_path / "m.onnx").write_bytes(small(**metadata))
    assert read_metadata(tmp_path / "m.onnx") == metadata


def test_a_file_that_was_cut_off_is_an_error(tmp_path):
    whole = small(model="m")
    for length in range(len(whole) - 10, len(whole)):
        (tmp_path / "m.onnx").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="ends too early"):
            read_metadata(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"garbage" * 99, b"\xff" * 99, b"\x0b", b"\x72\x7f"])
def test_what_is_no_onnx_file_is_an_error(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"not an ONNX file|ends too early"):
        read_metadata(tmp_path / "m.onnx")
