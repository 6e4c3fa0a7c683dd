from __future__ import annotations

import sys

import asking
from glance import context as contexts
from glance import db as layers
from glance.common import config  # noqa: F401
from glance.db.sqlalchemy import api, models
from oslo_config import cfg
from oslo_db import options

cfg.CONF([], project="glance")
options.set_defaults(cfg.CONF, connection=sys.argv[1])
models.BASE.metadata.create_all(api.get_engine())
context = contexts.RequestContext(is_admin=True, project_id="p", user_id="u")
asking.of("glance")
API = "glance/db/sqlalchemy/api.py"
images = layers.ImageRepo(context, api)
asking.ask("ORM, reader.using", images.list, API, "_image_get_all", "for image in query.all()")
asking.ask(
    "ORM, reader.using",
    lambda: api.image_tag_get_all(context, "0" * 32),
    API,
    "_image_tag_get_all",
    ").all()",
)
asking.ask(
    "flush, writer.using, retried",
    lambda: api.image_create(context, {"status": "queued", "id": "1" * 32, "size": 1, "min_ram": 0}),
    API, "_image_update", "image_ref.save(",
)  # fmt: skip
asking.ask(
    "Core, reflection", lambda: api.purge_deleted_rows(context, 30, 10),
    API, "purge_deleted_rows", 'sqlalchemy.Table("tasks"',
)  # fmt: skip
