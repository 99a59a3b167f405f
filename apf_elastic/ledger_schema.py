"""The ledger's tables, and the steps that make them.

Types and statements are those that SQLite and PostgreSQL have in common. Every row carries its factory, so that
several factories can share a server.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

metadata = sa.MetaData()
_text, _time, _number = sa.Text, sa.Double, sa.BigInteger

resources = sa.Table(
    "resources",
    metadata,
    sa.Column("factory", _text, primary_key=True),
    sa.Column("id", _text, primary_key=True),
    sa.Column("queue", _text, nullable=False),
    sa.Column("backend", _text, nullable=False),
    sa.Column("offering", _text, nullable=False),
    sa.Column("cores", _number, nullable=False),
    sa.Column("memory_mb", _number, nullable=False),
    sa.Column("disk_mb", _number, nullable=False),
    sa.Column("gpus", _number, nullable=False),
    sa.Column("walltime_s", _number),
    sa.Column("arch", _text, nullable=False),
    sa.Column("state", _text, nullable=False),
    sa.Column("created_at", _time, nullable=False),
    sa.Column("changed_at", _time, nullable=False),
    sa.Column("remote_id", _text),
    sa.Column("pool", _text),
    sa.Column("joined_at", _time),
    sa.Column("started_at", _time),
    sa.Column("ended_at", _time),
    sa.Column("reason", _text, nullable=False),
    sa.Column("outcome", _text, nullable=False),
    sa.Column("price_per_hour", _time, nullable=False),
)
counters = sa.Table(
    "counters",
    metadata,
    sa.Column("factory", _text, primary_key=True),
    sa.Column("queue", _text, primary_key=True),
    sa.Column("submitted", _number, nullable=False),
)
decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("factory", _text, primary_key=True),
    sa.Column("queue", _text, primary_key=True),
    sa.Column("n", _number, primary_key=True, autoincrement=False),
    sa.Column("at", _time, nullable=False),
    sa.Column("seen_at", _time, nullable=False),
    sa.Column("record", _text, nullable=False),
)
notes = sa.Table(
    "notes",
    metadata,
    sa.Column("factory", _text, primary_key=True),
    sa.Column("name", _text, primary_key=True),
    sa.Column("at", _time, nullable=False),
    sa.Column("value", _text, nullable=False),
)
schema_version = sa.Table("schema_version", metadata, sa.Column("version", _number, nullable=False))

#: The steps from an empty database to the tables above: step n, counted from 1, makes schema n out of n - 1.
#: A step that was released is never changed; what comes later is a step of its own.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE schema_version (version BIGINT NOT NULL)",
        "INSERT INTO schema_version (version) VALUES (0)",
        """CREATE TABLE resources (
            factory TEXT NOT NULL, id TEXT NOT NULL,
            queue TEXT NOT NULL, backend TEXT NOT NULL, offering TEXT NOT NULL,
            cores BIGINT NOT NULL, memory_mb BIGINT NOT NULL, disk_mb BIGINT NOT NULL, gpus BIGINT NOT NULL,
            walltime_s BIGINT, arch TEXT NOT NULL,
            state TEXT NOT NULL, created_at DOUBLE PRECISION NOT NULL, changed_at DOUBLE PRECISION NOT NULL,
            remote_id TEXT, pool TEXT, joined_at DOUBLE PRECISION,
            started_at DOUBLE PRECISION, ended_at DOUBLE PRECISION,
            reason TEXT NOT NULL, outcome TEXT NOT NULL, price_per_hour DOUBLE PRECISION NOT NULL,
            PRIMARY KEY (factory, id))""",
        "CREATE INDEX resources_live ON resources (factory) WHERE state <> 'gone'",
        "CREATE INDEX resources_ended ON resources (factory, ended_at) WHERE state = 'gone'",
        """CREATE TABLE counters (
            factory TEXT NOT NULL, queue TEXT NOT NULL, submitted BIGINT NOT NULL, PRIMARY KEY (factory, queue))""",
        """CREATE TABLE decisions (
            factory TEXT NOT NULL, queue TEXT NOT NULL, n BIGINT NOT NULL,
            at DOUBLE PRECISION NOT NULL, seen_at DOUBLE PRECISION NOT NULL, record TEXT NOT NULL,
            PRIMARY KEY (factory, queue, n))""",
        """CREATE TABLE notes (
            factory TEXT NOT NULL, name TEXT NOT NULL, at DOUBLE PRECISION NOT NULL, value TEXT NOT NULL,
            PRIMARY KEY (factory, name))""",
    ),
)
SCHEMA = len(MIGRATIONS)


def found_version(connection: Connection) -> int | None:
    """The schema version of a database; None when it has no ledger's tables."""
    if not sa.inspect(connection).has_table("schema_version"):
        return None
    return int(connection.execute(sa.select(schema_version.c.version)).scalar_one())


def migrate(connection: Connection, found: int) -> None:
    """Take the schema from version `found` to the one that this release knows, within the transaction."""
    for number, statements in enumerate(MIGRATIONS[found:], start=found + 1):
        for statement in statements:
            connection.exec_driver_sql(statement)
        connection.execute(sa.update(schema_version).values(version=number))
