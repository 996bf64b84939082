"""``ade workers``: who holds work."""

from datetime import datetime

from service.cli import output
from service.cli.connection import connected
from service.cli.feeds import listing
from service.cli.options import AsJson


def workers(as_json: AsJson = False) -> None:
    """List the workers that hold work now, and what they hold; the projector is one of them."""
    with connected() as client:
        found = list(client.listed("workers"))
    columns = {
        "ID": lambda worker: worker["id"],
        "HEARD OF": lambda worker: output.ago(datetime.fromisoformat(worker["heartbeat_at"]).timestamp()),
        "HOLDS": lambda worker: " ".join(worker["holds"]),
    }
    listing(found, len(found), columns, as_json=as_json, nothing="Nobody holds any work.")
