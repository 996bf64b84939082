"""What one API process serves with: made at start, handed to every request."""

from dataclasses import dataclass

from eventstore import Database, Log
from service.api.gate import Gate
from service.exposition import Exposition
from service.files import Files
from service.handler import Handler
from service.hub import Hub
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Deployment:
    """The parts of a running API process."""

    settings: Settings
    database: Database
    log: Log
    log_id: str
    handler: Handler
    hub: Hub
    files: Files
    exposition: Exposition
    gate: Gate
