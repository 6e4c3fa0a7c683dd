"""Six DAGs of three short tasks each, every 20 s."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

from airflow.sdk import dag, task


def short(number: int) -> None:
    @dag(
        dag_id=f"short_{number}",
        schedule=timedelta(seconds=20),
        start_date=datetime(2024, 1, 1),
        catchup=False,
        max_active_runs=4,
    )
    def three_tasks() -> None:
        @task
        def extract() -> list[int]:
            time.sleep(0.3)
            return list(range(10))

        @task
        def transform(rows: list[int]) -> int:
            return sum(rows)

        @task
        def load(total: int) -> None:
            print(total)

        load(transform(extract()))

    three_tasks()


for number in range(6):
    short(number)
