"""C and CUDA source text in canonical form: without comments and layout, its local headers included."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

_C_TOKEN = re.compile(
    r"""
      (?P<comment> //[^\n]* | /\*.*?\*/ )
    | (?P<space>   \s+ )
    | (?P<token>   (?:u8|[uUL])?R"(?P<fence>[^()\\\s]{0,16})\(.*?\)(?P=fence)"   # raw string
                 | \.?\d(?:[eEpP][+-]|'\w|[\w.])*                               # number
                 | [A-Za-z_$]\w*
                 | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*'
                 | <<<|>>>|<<=|>>=|\.\.\.|->\*?|\+\+|--|<<|>>|&&|\|\||\#\#|::|[-+*/%&|^=!<>]=
                 | . )
    """,
    re.VERBOSE | re.DOTALL,
)

_INCLUDED = re.compile(r'^#(include|include_next|import|embed|define \w+) ?["<]([^">\n]+)[">]', re.MULTILINE)


def c_source_digest_text(source: str, directory: Path | None) -> str:
    """C or CUDA source in canonical form, with what it includes and is found appended, each once.

    Includes are looked for beside the file that names them, then in ``directory`` (None: nowhere). A file that a macro
    names counts too, since the macro may stand in an include.
    """
    parts = [canonical_c(source)]
    seen: set[Path] = set()
    pending = [(parts[0], directory)]
    while pending and directory is not None:
        text, beside = pending.pop(0)
        for kind, name in _INCLUDED.findall(text):
            found = [p.resolve() for d in (beside, directory) if d is not None and _is_file(p := d / name)]
            if found and found[0] not in seen:
                seen.add(found[0])
                header = _header(found[0], kind)
                parts += [f"// {name}", header]
                pending.append((header, found[0].parent))
    return "\n".join(parts)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a macro's text that can be no name: too long, say
        return False


def _header(path: Path, kind: str) -> str:
    """A header in canonical form, or the digest of data; "" where it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError:  # the compiler says so better
        return ""
    if kind == "embed":
        return hashlib.sha256(data).hexdigest()
    return canonical_c(data.decode("utf-8", errors="replace"))


def canonical_c(text: str) -> str:
    """C or CUDA source without comments, with one space between tokens and each preprocessor directive on its line.

    The white space inside a directive shrinks to one blank but stays, since ``#define F (x)`` is not ``#define F(x)``.
    """
    lines: list[str] = []
    words: list[str] = []
    directive: list[str] | None = None
    fresh = True  # nothing but blanks since the line began
    for match in _C_TOKEN.finditer(re.sub(r"\\\r?\n", "", text) + "\n"):
        token = match["token"]
        if token is None:
            ends = match["space"] is not None and "\n" in match["space"]
            if directive is not None:
                directive.append(" ")
                if ends:
                    lines.append(_directive(directive))
                    directive = None
            fresh = fresh or ends
        elif directive is not None:
            directive.append(token)
        elif token == "#" and fresh:
            lines.append(" ".join(words))
            words, directive = [], ["#"]
        else:
            words.append(token)
            fresh = False
    return "\n".join(line for line in (*lines, " ".join(words)) if line)


def _directive(pieces: Sequence[str]) -> str:
    return "#" + re.sub(r" +", " ", "".join(pieces[1:])).strip()
