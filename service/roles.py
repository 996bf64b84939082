"""Who may do what: each endpoint asks for one role, and a role holds what those before it hold."""

from enum import Enum


class Role(Enum):
    """From the least to the most."""

    PUBLIC = "public"
    """Nobody needs to be known: health, readiness, the description of the API and the pages."""
    VIEWER = "viewer"
    """Reads."""
    OPERATOR = "operator"
    """Also creates, cancels and uploads."""
    ADMIN = "admin"
    """Also switches safe mode, makes and revokes keys."""
