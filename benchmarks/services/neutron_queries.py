from __future__ import annotations

import sys

import asking
import sqlalchemy as sa
from neutron.common import config
from neutron.db import db_base_plugin_v2, models_v2, rangeallocator  # noqa: F401
from neutron.db.migration.models import head
from neutron.db.quota import driver as quotas
from neutron_lib import context as contexts
from neutron_lib.db import api as db_api
from oslo_config import cfg
from oslo_db import options

config.register_common_config_options()
cfg.CONF([], project="neutron")
options.set_defaults(cfg.CONF, connection=sys.argv[1])
head.get_metadata().create_all(db_api.CONTEXT_WRITER.get_engine())
context = contexts.get_admin_context()
table = sa.Table(
    "ranges", head.get_metadata(), sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("value", sa.Integer), sa.Column("scope", sa.String(36)),
)  # fmt: skip
table.create(db_api.CONTEXT_WRITER.get_engine())
allocator = rangeallocator.RangeAllocator(table, "value", "scope", sa.String(36), ValueError)


@db_api.retry_if_session_inactive()
@db_api.CONTEXT_WRITER
def allocate(context):
    return allocator.allocate(context, 1, 9, "s")


asking.of("neutron")
plugin = object.__new__(db_base_plugin_v2.NeutronDbPluginV2)
FILE = "neutron/db/db_base_plugin_v2.py"
asking.ask(
    "ORM, retried", lambda: plugin.get_networks(context),
    FILE, "_get_networks", "return model_query.get_collection(",
)  # fmt: skip
asking.ask(
    "ORM, retried, @reader", lambda: plugin.get_ports(context),
    FILE, "get_ports", "for c in query",
)  # fmt: skip
asking.ask(
    "ORM, retried", lambda: plugin.get_networks_count(context),
    FILE, "get_networks_count", "return model_query",
)  # fmt: skip
asking.ask(
    "object, reader.using", lambda: quotas.DbQuotaDriver.get_project_quotas(context, {}, "p"),
    "neutron/db/quota/driver.py", "get_project_quotas", "get_objects(",
)  # fmt: skip
asking.ask(
    "Core, retried, @writer", lambda: allocate(context),
    "neutron/db/rangeallocator.py", "allocate", "execute(self._stmt",
)  # fmt: skip
