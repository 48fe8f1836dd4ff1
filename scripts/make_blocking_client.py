"""Writes the client that blocks from the one for asyncio, so that there is one of each signature, text and rule.

`python scripts/make_blocking_client.py` writes it; with `--check` it only tells whether it is up to date (exit 1 if
not). The docstrings of the module and of the class are its own and stay.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).parents[1] / "src" / "forwardpass" / "client"
SOURCE, MADE = CLIENT / "asynchronous.py", CLIENT / "blocking.py"
NOTE = "# Made by scripts/make_blocking_client.py from asynchronous.py, apart from the docstring of the class.\n"
WITHOUT_WAITING = (
    (r"\basync def ", "def "),
    (r"\bawait ", ""),
    (r"\bAsyncClient\b", "Client"),
    (r"\b__a(enter|exit)__", r"__\1__"),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"^import asyncio\n", ""),
    (r"\bforwardpass\.client\.streams import StreamPool\b", "forwardpass.client.sockets import SocketPool"),
    (r"\bStreamPool\b", "SocketPool"),
)


def blocking(source: str, made: str) -> str:
    """Return the blocking client that belongs to `source`, with the docstrings of `made`."""
    text = source
    for pattern, replacement in WITHOUT_WAITING:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    for pattern in (r'\A""".*?"""\n', r'^class Client:\n    """.*?"""\n'):
        ours, theirs = (re.search(pattern, one, re.MULTILINE | re.DOTALL) for one in (made, text))
        assert ours is not None, "both have it"
        assert theirs is not None, "both have it"
        text = text[: theirs.start()] + ours.group() + text[theirs.end() :]
    first, _, rest = text.partition("\n")
    return _formatted(f"{first}\n\n{NOTE}{rest}")


def _formatted(text: str) -> str:
    """Sort imports and break lines as everywhere: what is shorter without `async` may fit into one."""
    for command in (["check", "-q", "--fix-only", "--select=I", "-"], ["format", "-q", "-"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(MADE)]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True).stdout
    return text


def main() -> int:
    """Write the file, or check it."""
    made = MADE.read_text()
    wanted = blocking(SOURCE.read_text(), made)
    if wanted == made:
        return 0
    if "--check" in sys.argv[1:]:
        print(f"Stale: {MADE.name}. Run 'make docs'.", file=sys.stderr)
        return 1
    MADE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
