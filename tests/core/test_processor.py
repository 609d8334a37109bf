"""The flags of a processor decide whether bfloat16 is fast."""

import pytest

from emlib.core import processor

INTEL = "processor\t: 0\nmodel name\t: Xeon\nflags\t\t: fpu sse2 {} amx_tile\n\nprocessor\t: 1\nflags\t\t: fpu\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {} sve\n"


@pytest.mark.parametrize(("text", "flag", "fast"), [
    (INTEL, "amx_bf16", True), (INTEL, "avx512_bf16", True), (INTEL, "avx512_vnni", False),
    (ARM, "bf16", True), (ARM, "i8mm", False), ("{}", "", False)])
def test_bfloat16_is_fast_where_the_processor_has_products_in_it(tmp_path, text, flag, fast):
    path = tmp_path / "cpuinfo"
    path.write_text(text.format(flag))
    assert processor.computes_bfloat16(path) is fast


def test_a_system_that_tells_nothing_counts_as_one_without(tmp_path, monkeypatch):
    monkeypatch.setattr(processor.platform, "system", lambda: "Windows")
    assert processor.computes_bfloat16(tmp_path / "missing") is False
