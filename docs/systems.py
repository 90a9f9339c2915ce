"""Write the pages of the documentation: the hand-written ones, one for each system that is there, and the tables."""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
import textwrap
from pathlib import Path

import findings
import tables
from findings import cell
from sources import linked

from steepest.catalogue import System, checked, claims, shown_of, systems, there

HERE = Path(__file__).parent
TARGET = HERE.parent / "build" / "docs"
INCLUDE = re.compile(r'^<!-- include: (?P<file>\S+) "(?P<title>[^"]+)" -->$', re.MULTILINE)
ROWS = re.compile(r'^<!-- evidence: (?P<slug>\S+) "(?P<label>[^"]+)" "(?P<columns>[^"]+)" -->$', re.MULTILINE)
PICTURE = re.compile(r"^!\[[^\]]*\]\((?P<target>[^)]+)\)\n\n?", re.MULTILINE)
SECTION = re.compile(r"(Args|Returns|Raises|Yields|Attributes|Class attributes|Shapes?|References|Examples?):$")


def main() -> None:
    """Fill the folder that mkdocs reads."""
    shutil.rmtree(TARGET, ignore_errors=True)
    (TARGET / "systems").mkdir(parents=True)
    hand_written = [file for kind in ("md", "js", "png", "svg", "yaml") for file in HERE.rglob(f"*.{kind}")]
    for file in sorted([*hand_written, *(HERE / "cluster").glob("*.py")]):
        to = TARGET / file.relative_to(HERE)
        to.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".md":
            to.write_text(linked(written(file)), encoding="utf-8")
        else:
            shutil.copy(file, to)
    present = [system for system in systems() if there(system)]
    pages = {f"systems/{system.slug}.md": page(system) for system in present}
    pages |= {"systems/index.md": index(present), "systems/exemptions.md": exemptions(present)}
    pages |= {"gallery.md": findings.page(present), "tasks.md": tables.tasks_page(present)}
    pages |= {"benchmarks.md": tables.benchmarks_page(HERE.parent / "benchmarks")}
    for name, text in pages.items():
        (TARGET / name).write_text(linked(text), encoding="utf-8")
    findings.draw_figures(present, TARGET)


def written(file: Path) -> str:
    """A hand-written page: sections of other files and rows of evidence put in, absent pictures left out."""

    def included(link: re.Match[str]) -> str:
        text = (HERE.parent / link["file"]).read_text(encoding="utf-8")
        body = text.split(f"\n## {link['title']}\n", 1)[1].split("\n## ", 1)[0].strip()
        return re.sub(r"^ {3}", "    ", body, flags=re.MULTILINE)  # four belong to a list item here

    def pictured(link: re.Match[str]) -> str:
        return link[0] if (file.parent / link["target"]).is_file() else ""

    text = file.read_text(encoding="utf-8")
    text = INCLUDE.sub(included, text)
    text = ROWS.sub(lambda asked: findings.table(asked["slug"], asked["label"], asked["columns"].split(", ")), text)
    return PICTURE.sub(pictured, text)


def word(value: bool | None) -> str:
    """A status as a word."""
    return {True: "yes", False: "no", None: "–"}[value]


def index(present: list[System]) -> str:
    """The table of all systems, a section for each room."""
    lines = ["# Systems", "", f"{len(present)} of {len(systems())} systems are there."]
    head = ["| system | publication | kind | state | claims shown |", "|---|---|---|---|---|"]
    for room in dict.fromkeys(system.room for system in systems()):
        lines += ["", f"## {room}", "", *head]
        for system in (row for row in systems() if row.room == room):
            here = system in present
            name = f"[{system.slug}]({system.slug}.md)" if here else system.slug
            judged = shown_of(claims(system) or ()) or "–"
            state = ("checked" if checked(system) else "there", judged) if here else ("not there yet", "–")
            row = (name, cell(f"{system.title} ({system.year}), {system.source}"), system.kind, *state)
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def page(system: System) -> str:
    """One system: its row, its state, and what its module and names say of themselves."""
    module = importlib.import_module(f"steepest.{system.module}")
    facts = f"{system.holds} facts" if system.holds else "a test of its own"
    rows = {
        "publication": f"{cell(system.title)} ({system.year})",
        "source": cell(system.source),
        "kind": system.kind,
        "module": f"`steepest.{system.module}`",
        "checked": f"{word(checked(system))} ({facts})",
        "claims shown": shown_of(claims(system) or ()) or "–",
    }
    head, *rest = (f"| {key} | {value} |" for key, value in rows.items())
    lines = [f"# {system.slug}", "", head, "|---|---|", *rest]
    lines += ["", "```python", system.import_line, "```", "", markdown(inspect.getdoc(module) or "")]
    lines += findings.section(system)
    for name in system.names:
        thing = getattr(module, name)
        lines += ["", f"## {name}", ""]
        if callable(thing):
            lines += ["```python", signature(name, thing), "```", ""]
        if inspect.isclass(thing) or inspect.isroutine(thing):
            lines.append(markdown(inspect.getdoc(thing) or ""))
    return "\n".join(lines) + "\n"


def signature(name: str, thing: object) -> str:
    """A call of a name: its arguments and their defaults, one a line where they are many."""
    try:
        parameters = inspect.signature(thing).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return name
    parts: list[str] = []
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not any(piece.startswith("*") for piece in parts):
            parts.append("*")
        parts.append(str(parameter.replace(annotation=parameter.empty)))
    line = f"{name}({', '.join(parts)})"
    return line if len(line) < 90 else f"{name}(\n    " + ",\n    ".join(parts) + ",\n)"


def exemptions(present: list[System]) -> str:
    """Every check of a conformance suite that a member declares itself exempt from, with its reason."""
    rows = []
    for system in present:
        module = importlib.import_module(f"steepest.{system.module}")
        for name in system.names:
            declared = getattr(getattr(module, name), "exempt", {})
            for check, reason in declared.items():
                rows.append(f"| [{name}]({system.slug}.md) | `{check}` | {cell(reason)} |")
    head = [
        "# Exemptions",
        "",
        "A member of a conformance suite may declare itself exempt from one check, with a reason.",
    ]
    table = ["| member | check | reason |", "|---|---|---|", *rows] if rows else ["None is declared."]
    return "\n".join([*head, "", *table]) + "\n"


def markdown(text: str) -> str:
    """A docstring as Markdown: roles, formulas, sections and examples."""
    text = re.sub(r":math:`([^`]*)`", r"\\(\1\\)", text)
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text)
    text = text.replace("``", "`")
    lines, out, i = text.splitlines(), [], 0
    while i < len(lines):
        line = lines[i]
        if (section := SECTION.match(line)) or line.startswith((".. math::", ">>>")):
            end = i + 1
            while end < len(lines) and _belongs(line, lines[end]):
                end += 1
            body = lines[i + 1 : end]
            if section and ">>>" in "".join(body):
                out += [
                    "",
                    f"**{section[1]}**",
                    "",
                    "```pycon",
                    *textwrap.dedent("\n".join(body)).strip().splitlines(),
                    "```",
                ]
            elif section:
                out += ["", f"**{section[1]}**", "", *_items(body)]
            elif line.startswith(">>>"):
                out += ["", "```pycon", line, *body, "```", ""]
            else:
                formula = textwrap.dedent("\n".join([line.removeprefix(".. math::").strip(), *map(str.strip, body)]))
                out += ["", r"\[", formula.strip(), r"\]", ""]
            i = end
        else:
            out.append(line)
            i += 1
    return "\n".join(out)


def _belongs(first: str, line: str) -> bool:
    """Whether a line still belongs to the block that ``first`` opened: indented, or the output of an example."""
    return bool(line.strip()) if first.startswith(">>>") else not line.strip() or line.startswith(" ")


def _items(body: list[str]) -> list[str]:
    """The entries of a section, each a list item with its continuation lines."""
    out: list[str] = []
    for line in textwrap.dedent("\n".join(body)).strip().splitlines():
        if line.startswith(" "):
            out.append("  " + line.strip())
        elif line.strip():
            out.append("- " + re.sub(r"^([\w*, .]{1,40}?):\s", r"`\1`: ", line))
    return [*out, ""]


if __name__ == "__main__":
    main()
