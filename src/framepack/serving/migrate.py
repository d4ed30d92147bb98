"""The store's tables, brought to this version by Alembic."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from framepack.errors import FramePackError

FOLDER = Path(__file__).parent / "migrations"
LOCK = 2
"""Key of PostgreSQL's lock, so that one process migrates and the others wait."""


class NewerStore(FramePackError):
    """A store that a newer version has written."""


def migrate(engine: Engine) -> None:
    """Bring the tables to this version; nothing where they are.

    Raises:
        NewerStore: they are of a version that this one does not know.
    """
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    scripts = ScriptDirectory.from_config(config)
    with engine.connect().execution_options(writes=True) as db, db.begin():
        if db.dialect.name == "postgresql":
            db.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
        there = MigrationContext.configure(db).get_current_revision()
        if there == scripts.get_current_head():
            return
        if there is not None and there not in {script.revision for script in scripts.walk_revisions()}:
            raise NewerStore(f"the job store is of version {there}, which is newer: use the newer framepack")
        config.attributes["connection"] = db
        command.upgrade(config, "head")
