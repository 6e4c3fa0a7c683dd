from __future__ import annotations

import sys

import asking
from cinder import context as contexts
from cinder import objects
from cinder.common import config  # noqa: F401
from cinder.db import api as db
from cinder.db import models
from oslo_config import cfg

objects.register_all()
cfg.CONF([], project="cinder")
cfg.CONF.set_override("connection", sys.argv[1], "database")
db.configure(cfg.CONF)
models.BASE.metadata.create_all(db.get_engine())
context = contexts.get_admin_context()
context.project_id, context.user_id = "p", "u"
asking.of("cinder")
API = "cinder/db/api.py"
asking.ask(
    "ORM, @reader", lambda: db.volume_get_all_by_project(context, "p", None, None),
    API, "volume_get_all_by_project", "return query.all()",
)  # fmt: skip
asking.ask(
    "ORM, @reader", lambda: db.quota_get_all_by_project(context, "p"),
    API, "quota_get_all_by_project", ".all()",
)  # fmt: skip
asking.ask(
    "flush, @writer", lambda: db.quota_create(context, "p", "volumes", 7),
    API, "quota_create", "quota_ref.save(",
)  # fmt: skip
asking.ask(
    "flush, @writer, retried", lambda: db.volume_create(context, {"volume_type_id": "t", "project_id": "p"}),
    API, "_volume_get", ").first()",
)  # fmt: skip
asking.ask(
    "Core, @writer", lambda: db.consistencygroup_create(context, {"name": "n", "project_id": "p"}, cg_id="c"),
    API, "consistencygroup_create", "session.execute(insert_stmt)",
)  # fmt: skip
