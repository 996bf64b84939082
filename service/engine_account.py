"""The account that engines run under when the service is root: another one than PostgreSQL's, and not root's."""

import os
import pwd
from dataclasses import dataclass

from eventstore.embedded import SYSTEM_ACCOUNTS
from service.settings import Settings
from service.work.process import Account, reaches, unprivileged_account


@dataclass(frozen=True, slots=True)
class EngineAccount:
    """``account`` is None where engines run as the service's own user; ``notice`` says why when that is root."""

    account: Account | None
    notice: str | None = None

    @classmethod
    def choose(cls, settings: Settings) -> "EngineAccount":
        """The account that can reach the interpreter and the folders that an engine needs."""
        known = {user.pw_name for user in pwd.getpwall()}
        account = unprivileged_account(next((name for name in SYSTEM_ACCOUNTS if name in known), None))
        if account is None:
            alone = "Engines run as root: this machine has no other account for them." if os.geteuid() == 0 else None
            return cls(None, alone)
        for path in (settings.python, settings.data, settings.venvs):
            if not reaches(account, path):
                return cls(
                    None,
                    f"Engines run as root, because the account {account.name} cannot reach {path}. To separate them, "
                    "run the service as an ordinary user, or set ADE_DATA_DIR and ADE_PYTHON_BIN to places that "
                    "every account can reach.",
                )
        return cls(account)
