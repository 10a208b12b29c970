"""What the provider of `note.take` does: takes a note, once, and remembers what it answered."""

import json
import re
import sqlite3
import uuid
from datetime import datetime, timedelta, timezone

CLOCKS_MAY_DIFFER = timedelta(minutes=5)
# Outcomes are kept for longer than any deadline (24 h) and any delay on the way.
RETENTION_S = 72 * 3600


class Problem(Exception):
    """A failure, as the body of an arr.error: a problem document (RFC 9457)."""

    def __init__(self, name, status, title, detail):
        super().__init__(detail)
        members = {"type": f"urn:problem-type:arr:{name}", "title": title, "status": status, "detail": detail}
        self.body = json.dumps(members).encode()


def may_answer(request):
    """Whether the return address is a requestor group's; any other could be a queue of somebody else."""
    return bool(re.fullmatch("arr\\.reply\\.[a-z0-9][a-z0-9-]{0,62}", request.reply_to or ""))


def check(request):
    """Refuses what is no request, and what its requestor has given up."""
    try:
        if request.type != "arr.request":
            raise ValueError(f"a message of type {request.type!r} is no request")
        uuid.UUID(request.correlation_id or "")
        if not request.message_id or not may_answer(request):
            raise ValueError("message_id is missing, or reply_to names no requestor group")
        deadline = datetime.fromisoformat(request.headers["deadline"])
        overdue = datetime.now(timezone.utc) - deadline
    except (ValueError, KeyError, TypeError) as error:
        raise Problem("unreadable-message", 400, "The message is no request", str(error)) from error
    # With an expiration, the broker has seen to it, whatever the clocks say.
    if not request.expiration and overdue > CLOCKS_MAY_DIFFER:
        raise Problem("deadline-exceeded", 504, "Deadline exceeded", "it came too late, and nothing was done")


class Ledger:
    """Outcomes by message id, in the database that the effects are in."""

    def __init__(self, path):
        self.database = sqlite3.connect(path, isolation_level=None, timeout=30)
        self.database.executescript(
            """
            pragma journal_mode = wal;
            pragma synchronous = full;
            create table if not exists outcomes (message_id text primary key, body blob, at integer);
            create index if not exists outcomes_at on outcomes (at);
            create table if not exists notes (number integer primary key, text text not null);
            """
        )

    def once(self, message_id, effect):
        """Has the effect and records its outcome in one commit; a repeat has the recorded outcome."""
        with self.database:  # Commits at the end, or rolls back if the effect raises a problem.
            self.database.execute("begin immediate")
            row = self.database.execute("select body from outcomes where message_id = ?", [message_id]).fetchone()
            if row:
                return row[0]
            body = effect(self.database)
            self.database.execute("insert into outcomes values (?, ?, unixepoch())", [message_id, body])
            self.database.execute("delete from outcomes where at < unixepoch() - ?", [RETENTION_S])
            return body


def take_note(database, body):
    """The effect: one more note."""
    try:
        text = json.loads(body)["text"]
        if not isinstance(text, str):
            raise ValueError("text is no string")
    except (ValueError, KeyError, TypeError) as error:
        raise Problem("invalid-request", 422, "Invalid request", f"not of the form {{'text': …}}: {error}") from error
    number = database.execute("insert into notes (text) values (?)", [text]).lastrowid
    return json.dumps({"number": number}).encode()
