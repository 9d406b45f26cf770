"""What people see: pictures of pages at two widths, and what a browser and axe-core say of them.

    pal serve --model exports/NAME &
    python benchmarks/look.py --out shots --server http://127.0.0.1:8000 reports/*.html

Needs a Chromium (apt-get install chromium); accessibility is judged where ``--axe`` names
axe-core's file (npm install axe-core; node_modules/axe-core/axe.min.js). The server's page is tried
with two answers as several users, and an interview of six answers. Ends with 1 if a page is wider
than its window, asks another place for anything, says anything in the console, or has an
accessibility error.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from urllib.parse import urlsplit

from chromium import Tab, browser, find_chromium

ANSWERS = 6
PERSON = "somebody new"


class Looker:
    """Takes pictures and counts faults."""

    def __init__(self, tab: Tab, out: Path, axe: str | None) -> None:
        self.tab, self.out, self.axe = tab, out, axe
        self.faults = 0

    def look(self, name: str) -> None:
        """Look at the page as it is now, in the light, on a phone, and in the dark."""
        for width, dark in ((1400, False), (390, False), (1400, True)):
            self.tab.look(width, dark)
            self.tab.picture(self.out / f"{name}-{'dark' if dark else width}.png")
            found = [f"{one} in {width} px" for one in self._faults()]
            self.faults += len(found)
            print(
                f"{name} {width} px{' dark' if dark else ''}: {len(found)} faults",
                *found,
                sep="\n  ",
            )
        self.tab.look(1400)

    def _faults(self) -> list[str]:
        wider = self.tab.overflow()
        found = [f"{wider} px wider than the window"] if wider > 0 else []
        if self.axe is not None:
            found += self.tab.violations(self.axe)
        found += self.tab.told
        self.tab.told.clear()
        own = urlsplit(self.tab.run("location.href"))
        for asked in self.tab.asked:
            parts = urlsplit(asked)
            is_own = parts.netloc == own.netloc and parts.scheme == own.scheme
            if not is_own and parts.scheme not in ("data", "about"):
                found.append(f"asks {asked[:100]}")
        self.tab.asked.clear()
        return found

    def page(self, path: Path) -> None:
        """Look at a file, as it opens and with all that is folded."""
        self.tab.open(path.resolve().as_uri())
        self.tab.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        self.look(path.stem)

    def server(self, address: str, token: str | None) -> None:
        """Try the page of a server."""
        tab = self.tab
        tab.open(f"{address}/")
        if token is not None:
            tab.wait("!document.getElementById('token').hidden")
            tab.told.clear()  # of the refusal that the page asks the token for
            self.look("token")
            tab.run("document.getElementById('token-value').focus()")
            tab.call("Input.insertText", text=token)
            tab.key("Enter", 13, "\r")
        tab.wait("!document.getElementById('model').hidden")
        self.look("server")
        tab.run("document.getElementById('compare-form').requestSubmit()")
        tab.wait("document.getElementById('compared')")
        tab.run("document.getElementById('interview-start').click()")
        title = "document.getElementById('question-title').textContent"
        tab.wait(f"{title}.startsWith('Question 1 ')")
        self.look("server-compared")
        for number in range(ANSWERS):
            tab.run(f"document.querySelectorAll('.choice')[{number % 2}].click()")
            tab.wait(f"{title}.startsWith('Question {number + 2} ')")
        tab.run(f"document.getElementById('keep-name').value = '{PERSON}'")
        tab.run("document.getElementById('keep-form').requestSubmit()")
        tab.wait("document.getElementById('keep-told').textContent")
        self.look("server-interviewed")
        tab.run("document.getElementById('keep-forget').click()")
        tab.wait("document.getElementById('keep-told').textContent.includes('forgotten')")
        tab.open(f"{address}/docs")
        self.look("docs")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pages", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=Path("shots"))
    parser.add_argument("--axe", type=Path, help="axe.min.js")
    parser.add_argument("--server", help="address of pal serve")
    parser.add_argument("--token")
    asked = parser.parse_args()
    program = find_chromium()
    if program is None:
        print("no Chromium is installed; apt-get install chromium", file=sys.stderr)
        return 2
    asked.out.mkdir(parents=True, exist_ok=True)
    axe = None if asked.axe is None else asked.axe.read_text(encoding="utf-8")
    with browser(program) as tab:
        looker = Looker(tab, asked.out, axe)
        tab.look(1400)
        if asked.server is not None:
            looker.server(asked.server.rstrip("/"), asked.token)
        for page in asked.pages:
            looker.page(page)
    print(f"{looker.faults} faults; pictures in {asked.out}")
    return 1 if looker.faults else 0


if __name__ == "__main__":
    sys.exit(main())
