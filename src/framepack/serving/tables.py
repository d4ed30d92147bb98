"""The tables of the store, as the newest migration leaves them."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Float, Index, Integer, MetaData, String, Table, Text

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("client", String(128), nullable=False),
    Column("status", String(16), nullable=False),
    Column("wish", String(16)),
    Column("model", String(255), nullable=False),
    Column("prompt", Text, nullable=False),
    Column("asked", JSON, nullable=False),
    Column("parent", String(64)),
    Column("redo", JSON(none_as_null=True)),
    Column("position", Float(53), nullable=False),
    Column("ready", Float(53), nullable=False),
    Column("created", Float(53), nullable=False),
    Column("started", Float(53)),
    Column("ended", Float(53)),
    Column("progress", JSON, nullable=False),
    Column("error", JSON(none_as_null=True)),
    Column("worker", String(128)),
    Column("leased_until", Float(53)),
    Column("attempt", Integer, nullable=False),
    Column("deaths", Integer, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("version", Integer, nullable=False),
    Index("jobs_waiting", "status", "position"),
    Index("jobs_of_client", "client", "created"),
)

workers = Table(
    "workers",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("about", JSON, nullable=False),
    Column("started", Float(53), nullable=False),
    Column("seen", Float(53), nullable=False),
)
