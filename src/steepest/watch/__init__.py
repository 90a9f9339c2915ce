"""Who watches a run: probes that measure it, the recorder that runs them beside any loop, the guard that acts on them.

:class:`Recorder` is two lines in a training loop; ``steepest watch`` draws what it wrote.
"""

from __future__ import annotations

from ..catalogue import lazy_room

__getattr__, __dir__ = lazy_room(
    __name__,
    {
        "Diagnosis": "doctor",
        "Finding": "doctor",
        "GradientNorms": "vital_signs",
        "Guard": "guard",
        "GuardStop": "guard",
        "Journal": "journal",
        "LogitSpread": "vital_signs",
        "Recorder": "recorder",
        "RunRecord": "journal",
        "UnitActivity": "vital_signs",
        "UpdateRatios": "vital_signs",
        "diagnose": "doctor",
        "hessian": "curvature.hessian",
        "logarithmic": "recorder",
        "read_run": "journal",
    },
)
