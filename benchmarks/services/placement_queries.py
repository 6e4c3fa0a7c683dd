from __future__ import annotations

import sys

import asking
from oslo_config import cfg
from placement import conf, context, db_api
from placement.db.sqlalchemy import models
from placement.objects import resource_provider, trait, usage

config = cfg.ConfigOpts()
conf.register_opts(config)
config.set_default("connection", sys.argv[1], "placement_database")
config([], default_config_files=[])
db_api.configure(config)
models.BASE.metadata.create_all(db_api.get_placement_engine())
ctx = context.RequestContext(is_admin=True, project_id="p", user_id="u")
ctx.config = config
asking.of("placement")
asking.ask(
    "Core, @reader", lambda: resource_provider.get_all_by_filters(ctx),
    "placement/objects/resource_provider.py", "_get_all_by_filters_from_db", ".execute(",
)  # fmt: skip
asking.ask(
    "Core, @reader", lambda: trait.get_traits_by_provider_id(ctx, 7),
    "placement/objects/trait.py", "get_traits_by_provider_id", ".execute(",
)  # fmt: skip
asking.ask(
    "ORM, @reader", lambda: usage.get_all_by_project_user(ctx, "p"),
    "placement/objects/usage.py", "_get_all_by_project_user", ".all()",
)  # fmt: skip
asking.ask(
    "Core, @writer", lambda: trait._trait_sync(ctx),
    "placement/objects/trait.py", "_trait_sync", "execute(sel).fetchall",
)  # fmt: skip
