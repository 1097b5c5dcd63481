"""The cost of headers: which are public, what one compilation takes, what is wrong is said."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks import compile_time


def test_public_headers_leave_out_the_parts_of_kernels():
    headers = compile_time.public_headers(compile_time.INCLUDE)
    assert {"hybridattn/hybridattn.h", "hybridattn/ops/rule.h", "hybridattn/core/check.h"} <= set(headers)
    assert not [header for header in headers if header.endswith("-inl.h")]
    assert compile_time.matching(headers, ["core/check"]) == ["hybridattn/core/check.h"]
    with pytest.raises(ValueError, match="no header contains 'nothing', there are hybridattn/"):
        compile_time.matching(headers, ["nothing"])


def test_a_larger_header_costs_more(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compile_time, "YARDSTICK", "regex")
    compile_time.main(["--only", "core/freed_memory.h", "--out", str(tmp_path / "cost.json")])
    content = json.loads((tmp_path / "cost.json").read_text())
    regex, freed = content["results"]
    assert freed["header"] == "hybridattn/core/freed_memory.h"
    assert regex["lines"] > 2 * freed["lines"] > 0
    assert regex["seconds"] > freed["seconds"] > 0
    assert regex["mib"] > freed["mib"] > 5
    assert content["machine"]["flags"] == "-O2"
    assert "hybridattn/core/freed_memory.h" in capsys.readouterr().out


def test_what_does_not_compile_is_an_error_with_the_compilers_words(tmp_path):
    with pytest.raises(RuntimeError, match=r"compile_time: c\+\+ .*missing"):
        compile_time.measure("hybridattn/missing.h", ["c++"], ["-std=c++20"], 1, tmp_path)
