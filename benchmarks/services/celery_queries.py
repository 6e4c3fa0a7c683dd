from __future__ import annotations

import sys
from pathlib import Path

import asking

Path("shop.py").write_text(
    """\
from celery import Celery
from sqlalchemy import Column, Integer, create_engine, select, text
from sqlalchemy.orm import Session, declarative_base
app = Celery("shop", broker="memory://", backend="cache+memory://")
engine = create_engine(URL)
Base = declarative_base()
class Item(Base):
    __tablename__ = "item"
    id = Column(Integer, primary_key=True)
@app.task
def by_orm():
    with Session(engine) as session:
        return len(session.scalars(select(Item)).all())
@app.task(bind=True, autoretry_for=(ZeroDivisionError,))
def by_core(self):
    with engine.connect() as connection:
        return connection.execute(text("select 1")).scalar()
""".replace("URL", repr(sys.argv[1]))
)
sys.path.insert(0, str(Path.cwd()))
import shop  # noqa: E402
from celery.contrib.testing.worker import start_worker  # noqa: E402

shop.Base.metadata.create_all(shop.engine)
asking.of("shop")
with start_worker(shop.app, perform_ping_check=False, pool="solo"):
    for how, task, function, fragment in (
        ("ORM, task in a worker", shop.by_orm, "by_orm", "scalars("),
        ("Core, task retried", shop.by_core, "by_core", "connect("),
    ):
        asking.ask(how, lambda task=task: task.delay().get(timeout=60), "shop.py", function, fragment)
