from __future__ import annotations

import sys

import asking
import keystone.conf
from keystone.common import sql
from keystone.resource.backends import sql as resources
from oslo_db import options

CONF = keystone.conf.CONF
keystone.conf.configure()
CONF([], project="keystone")
options.set_defaults(CONF, connection=sys.argv[1])
sql.core.initialize()
with sql.session_for_write() as session:
    sql.ModelBase.metadata.create_all(session.connection())
asking.of("keystone")
driver = resources.Resource()
FILE = "keystone/resource/backends/sql.py"
asking.ask(
    "ORM, reader.using", lambda: driver.get_project_by_name("admin", "d"),
    FILE, "get_project_by_name", "query.one()",
)  # fmt: skip
asking.ask("ORM, reader.using", lambda: driver.get_project("7"), FILE, "_get_project", "session.get(")
asking.ask(
    "flush, writer.using, @handle_conflicts",
    lambda: driver.create_project("8", {"id": "8", "name": "n", "domain_id": "8", "is_domain": False}),
    FILE, "create_project", "with sql.session_for_write(",
)  # fmt: skip
