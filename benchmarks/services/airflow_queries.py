from __future__ import annotations

import os
import sys

import asking

os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = sys.argv[1]
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
from airflow.models import DagRun, import_all_models
from airflow.models.base import Base
from airflow.models.pool import Pool
from airflow.settings import engine

import_all_models()
Base.metadata.create_all(engine)
asking.of("airflow")
asking.ask("ORM, @provide_session", Pool.get_pools, "airflow/models/pool.py", "get_pools", "session.scalars(")
asking.ask(
    "ORM, @provide_session",
    lambda: DagRun.find(dag_id="d"),
    "airflow/models/dagrun.py",
    "find",
    "session.scalars(",
)
asking.ask(
    "ORM, @provide_session", lambda: Pool.create_or_update_pool("p", 7, "d", False),
    "airflow/models/pool.py", "create_or_update_pool", "session.scalar(",
)  # fmt: skip
