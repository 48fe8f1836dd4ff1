"""The main job on two real models, as a user would do it: train, ship, serve, ask, stop.

Run by `make demo`. Everything that it does is a command that it prints; what it makes is in `demo-output/`.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np

HERE = Path(__file__).parent
OUT = HERE.parent / "demo-output"
FORWARDPASS = str(Path(sys.executable).with_name("forwardpass"))
SHADES = " .:-=+*#%@"
SENTENCES = (
    "The cat sleeps on the warm windowsill.",
    "A kitten naps in the sunshine by the window.",
    "Interest rates rose by a quarter of a point.",
    "The central bank made borrowing more expensive.",
)


def main() -> None:
    """Run both models from top to bottom."""
    started = time.monotonic()
    digits()
    sentences()
    print(f"\nDone in {time.monotonic() - started:.0f} s. Reports: {shown(OUT)}/*-bundle/report.html")
    print("\nServe one of them yourself, and ask it from another terminal:\n")
    print(f"  {shown(FORWARDPASS)} serve {shown(OUT / 'minilm-bundle')} --port 8000")
    print('  curl -s localhost:8000/v1/models/minilm/predict -d \'{"text": "The cat sleeps."}\'')


def digits() -> None:
    """Train, ship and ask an image classifier with labels."""
    title("1. An image classifier, trained here on scikit-learn's digits")
    folder, bundle = OUT / "digits", OUT / "digits-bundle"
    run([sys.executable, "-m", "digits.train", folder])
    ship(
        "digits.model:build",
        bundle,
        "digits",
        "--weights",
        folder / "weights.safetensors",
        "--data",
        folder / "data.npz",
    )
    with np.load(folder / "data.npz") as data, served(bundle) as url:
        pixels, labels = data["pixels"][:3], data["labels"][:3]
        for image, label in zip(pixels, labels, strict=True):
            tensor = {"name": "pixels", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": image.reshape(-1).tolist()}
            answer = ask(f"{url}/v2/models/digits/infer", {"inputs": [tensor]})
            scores = answer["outputs"][0]["data"]
            print("\n".join("    " + "".join(SHADES[round(value * 9)] * 2 for value in row) for row in image[0]))
            print(f"    answered {int(np.argmax(scores))}, labelled {label}\n")


def sentences() -> None:
    """Ship and ask a sentence encoder whose tokenizer runs on the server."""
    title("2. A sentence encoder: all-MiniLM-L6-v2, 22 million parameters")
    folder, bundle = OUT / "sentences", OUT / "minilm-bundle"
    run([sys.executable, "-m", "sentences.prepare", folder])
    processor = f"sentence-encoder:{folder / 'tokenizer'}"
    ship("sentences.model:build", bundle, "minilm", "--data", folder / "data", "--processor", processor)
    with served(bundle) as url:
        rows = [ask(f"{url}/v1/models/minilm/predict", {"text": text})["embeddings"][0] for text in SENTENCES]
        similar = np.array(rows) @ np.array(rows).T
        print("    How alike the server finds them (cosine):\n")
        for text, row in zip(SENTENCES, similar, strict=True):
            print("    " + "  ".join(f"{value:5.2f}" for value in row) + f"   {text}")


def ship(model: str, bundle: Path, name: str, *options: object) -> None:
    """Run the checklist."""
    run([FORWARDPASS, "ship", model, *options, "--out", bundle, "--name", name, "--slo", "p95=50ms", "--quick"])


@contextmanager
def served(bundle: Path) -> Iterator[str]:
    """Serve a bundle on a free port while the block runs; then stop the server as an operator would."""
    command = [FORWARDPASS, "serve", str(bundle), "--port", "0"]
    print(f"\n$ {shown(shlex.join(command))} &")
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield _wait_until_ready(server)
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate()
    print(f"\n    SIGTERM: the server answered what it had accepted and ended with exit code {server.returncode}.")


def _wait_until_ready(server: subprocess.Popen[str]) -> str:
    assert server.stderr is not None, "it was opened as a pipe"
    for line in server.stderr:
        print(f"    {line.strip()}")
        if " on http://" in line:
            return line.rpartition(" on ")[2].strip()
    raise SystemExit("the server ended before it was ready")


def ask(url: str, body: object) -> dict[str, list[dict[str, list[float]]]]:
    """Send JSON and return the JSON answer."""
    request = Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urlopen(request, timeout=30) as response:
        answer: dict[str, list[dict[str, list[float]]]] = json.load(response)
    return answer


def run(command: list[object]) -> None:
    """Show a command and run it in the folder of the examples."""
    words = [str(word) for word in command]
    print(f"\n$ {shown(shlex.join(words))}", flush=True)
    if subprocess.run(words, cwd=HERE, check=False).returncode != 0:
        raise SystemExit(f"failed: {shlex.join(words)}")


def shown(path: object) -> str:
    """Return a path or command as seen from the repository."""
    return str(path).replace(f"{HERE.parent}/", "").replace(".venv/bin/", "")


def title(text: str) -> None:
    """Print a heading."""
    print(f"\n{'=' * len(text)}\n{text}\n{'=' * len(text)}", flush=True)


if __name__ == "__main__":
    main()
