"""Orders: the same as `orders_async`, with endpoints that run in threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated

import hold_times
import httpx
from fastapi import Depends, FastAPI
from hold_times import timed
from orders_table import Order, OrdersBase, smoothed
from sqlalchemy import create_engine, func, orm, select, text

engine = create_engine(os.environ["DATABASE_URL"], pool_size=8, max_overflow=0)
hold_times.watch(engine)
new_session = orm.sessionmaker(engine)
payments = httpx.Client(base_url=os.environ["PAYMENTS_URL"])
OrdersBase.metadata.create_all(engine)
app = FastAPI()


def get_session() -> Iterator[orm.Session]:
    with new_session() as session:
        yield session


Session = Annotated[orm.Session, Depends(get_session)]


@app.get("/report")
def report(session: Session) -> int:
    hold_times.endpoint.set("report")
    return session.execute(text("select count(*) from orders, pg_sleep(0.2)")).scalar_one()


@app.post("/checkout")
def checkout(session: Session) -> int:
    hold_times.endpoint.set("checkout")
    order = Order(amount=7)
    session.add(order)
    session.flush()
    with timed("http"):
        payments.post("/charge", json={"order": order.id})  # with the connection held
    session.commit()
    return order.id  # expired by the commit: SQLAlchemy takes a connection again


@app.get("/forecast")
def forecast(session: Session) -> int:
    hold_times.endpoint.set("forecast")
    amounts = session.scalars(select(Order.amount).limit(1000)).all()
    with timed("own code"):
        return sum(smoothed(amounts, step) for step in range(600))


@app.get("/orders/{number}")
def one(number: int, session: Session) -> int:
    hold_times.endpoint.set("one")
    return session.scalar(select(func.count()).where(Order.id == number)) or 0


@app.get("/hold-times")
async def times() -> dict[str, float]:
    return hold_times.SECONDS
