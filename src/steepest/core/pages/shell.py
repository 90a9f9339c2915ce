"""What every page shares: the style, the script, the policy, and how templates are read."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..lazy import late
from . import palette

jinja2 = late("jinja2")
HERE = Path(__file__).parent


@cache
def page_parts() -> dict[str, Any]:
    """What every page carries: style, script and the policy that allows only them."""
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        "script": Markup(script),
        "style": Markup((HERE / "page.css").read_text(encoding="utf-8")),
        "light": Markup(palette.declarations(0)),
        "dark": Markup(palette.declarations(1)),
    }


def page_environment(folder: Path) -> Any:
    """Templates of a folder and of this one, ``parts.html``; whatever users typed is escaped in them."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, HERE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "breakable": lambda name: Markup("_<wbr>").join(Markup.escape(piece) for piece in str(name).split("_")),
        "initial": lambda text: text[:1].upper() + text[1:],
        "stamp": lambda text: str(text).replace("T", " ").replace("+00:00", " UTC"),
    }
    return environment
