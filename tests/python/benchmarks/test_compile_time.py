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
    assert "-DFMT_HEADER_ONLY=1" in content["machine"]["flags"]
    assert not [flag for flag in content["machine"]["flags"] if "/" in flag]
    assert "hybridattn/core/freed_memory.h" in capsys.readouterr().out


def test_what_does_not_compile_is_an_error_with_the_compilers_words(tmp_path):
    with pytest.raises(RuntimeError, match=r"compile_time: c\+\+ .*missing"):
        compile_time.measure("hybridattn/missing.h", ["c++"], ["-std=c++20"], 1, tmp_path)


def test_options_are_those_of_the_modules_build(tmp_path, monkeypatch):
    command = (
        "ccache c++ -DX=1 -I/i -isystem /s/a -O3 -DNDEBUG -fPIC -std=gnu++20 -fopenmp -MD -o a.o -c bindings/a.cpp"
    )
    commands = [{"file": "build.ninja", "command": "cmake"}, {"file": "bindings/a.cpp", "command": command}]
    expected = ["-DX=1", "-I/i", "-O3", "-DNDEBUG", "-std=gnu++20", "-fopenmp", "-isystem/s/a"]
    assert compile_time.build_options(commands) == expected
    with pytest.raises(ValueError, match=r"compiles no file of bindings/, run `make build` first"):
        compile_time.build_options(commands[:1])
    monkeypatch.setattr(compile_time, "BUILD", tmp_path / "nothing")
    with pytest.raises(SystemExit, match=r"nothing is not there, run `make build` first"):
        compile_time.main(["--only", "core/check"])
