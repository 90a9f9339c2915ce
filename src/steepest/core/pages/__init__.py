"""Pages of one file that work offline: their look, their figures, and the policy that lets nothing else in."""

from .shell import page_environment, page_parts
from .svg import canvas, inline

__all__ = ["canvas", "inline", "page_environment", "page_parts"]
