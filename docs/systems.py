"""Write the pages of the documentation: the hand-written ones as they are, and one for each system that is there."""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
import textwrap
from pathlib import Path

from steepest.catalogue import System, checked, systems, there, verdict

HERE = Path(__file__).parent
TARGET = HERE.parent / "build" / "docs"
SECTION = re.compile(r"(Args|Returns|Raises|Yields|Attributes|Class attributes|Shapes?|References|Examples?):$")


def main() -> None:
    """Fill the folder that mkdocs reads."""
    shutil.rmtree(TARGET, ignore_errors=True)
    (TARGET / "systems").mkdir(parents=True)
    for file in (*HERE.glob("*.md"), *HERE.glob("*.js")):
        shutil.copy(file, TARGET)
    present = [system for system in systems() if there(system)]
    for system in present:
        (TARGET / "systems" / f"{system.slug}.md").write_text(page(system), encoding="utf-8")
    (TARGET / "systems" / "index.md").write_text(index(present), encoding="utf-8")
    (TARGET / "systems" / "exemptions.md").write_text(exemptions(present), encoding="utf-8")


def word(value: bool | str | None) -> str:
    """A status as a word."""
    return value if isinstance(value, str) else {True: "yes", False: "no", None: "–"}[value]


def cell(text: object) -> str:
    """Text that may stand in a cell of a table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def index(present: list[System]) -> str:
    """The table of all systems, a section for each room."""
    lines = ["# Systems", "", f"{len(present)} of {len(systems())} systems are there."]
    for room in dict.fromkeys(system.room for system in systems()):
        lines += ["", f"## {room}", "", "| system | publication | kind | state | verdict |", "|---|---|---|---|---|"]
        for system in (row for row in systems() if row.room == room):
            here = system in present
            name = f"[{system.slug}]({system.slug}.md)" if here else system.slug
            state = (
                ("checked" if checked(system) else "there", word(verdict(system))) if here else ("not there yet", "–")
            )
            row = (name, f"{cell(system.title)} ({system.year})", system.kind, *state)
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
        "verdict": word(verdict(system)),
    }
    head, *rest = (f"| {key} | {value} |" for key, value in rows.items())
    lines = [f"# {system.slug}", "", head, "|---|---|", *rest]
    lines += ["", "```python", system.import_line, "```", "", markdown(inspect.getdoc(module) or "")]
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
        if parameter.kind is parameter.KEYWORD_ONLY and not any(part.startswith("*") for part in parts):
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
        if (found := SECTION.match(line)) or line.startswith((".. math::", ">>>")):
            end = i + 1
            while end < len(lines) and _belongs(line, lines[end]):
                end += 1
            body = lines[i + 1 : end]
            if found and ">>>" in "".join(body):
                out += [
                    "",
                    f"**{found[1]}**",
                    "",
                    "```pycon",
                    *textwrap.dedent("\n".join(body)).strip().splitlines(),
                    "```",
                ]
            elif found:
                out += ["", f"**{found[1]}**", "", *_items(body)]
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
