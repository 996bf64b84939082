"""A config, folded in memory from its control events."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from eventstore.event import Event


@dataclass(frozen=True, slots=True)
class Config:
    """The newest version of one config; ``version`` 0 does not exist."""

    id: str
    workspace_id: str = ""
    name: str = ""
    version: int = 0
    digest: str = ""


def fold(config_id: str, events: Iterable[Event]) -> Config:
    """The config after all of these control events."""
    config = Config(config_id)
    for event in events:
        if event.type == "config.registered":
            config = replace(
                config,
                workspace_id=event.workspace,
                name=event.data["name"],
                version=event.data["version"],
                digest=event.data["digest"],
            )
    return config
