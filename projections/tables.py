"""The projections that are tables: which functions of ``sql/projections/`` fill which tables, and when."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Projection:
    """``project_<name>_v1`` fills ``tables``: in the append itself (``inline``), or caught up by the projector."""

    name: str
    tables: tuple[str, ...]
    inline: bool


ALL = (
    Projection("configs", ("workspaces", "configs", "config_versions", "documents", "safe_mode"), inline=True),
    Projection("builds", ("builds",), inline=True),
    Projection("runs", ("runs", "artifacts"), inline=True),
    Projection("run_logs", ("run_logs",), inline=False),
    Projection("build_logs", ("build_logs",), inline=False),
)
CAUGHT_UP = tuple(projection for projection in ALL if not projection.inline)
