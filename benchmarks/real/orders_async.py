"""Orders: a FastAPI application with asyncio. `checkout` makes the classic mistake."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import hold_times
import httpx
from fastapi import Depends, FastAPI
from hold_times import timed
from orders_table import Order, OrdersBase, smoothed
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

engine = create_async_engine(os.environ["DATABASE_URL"], pool_size=8, max_overflow=0)
hold_times.watch(engine.sync_engine)
new_session = async_sessionmaker(engine, expire_on_commit=False)
payments = httpx.AsyncClient(base_url=os.environ["PAYMENTS_URL"])


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(OrdersBase.metadata.create_all)
    yield


app = FastAPI(lifespan=lifespan)


async def get_session() -> AsyncIterator[AsyncSession]:
    async with new_session() as session:
        yield session


Session = Annotated[AsyncSession, Depends(get_session)]


@app.get("/report")
async def report(session: Session) -> int:
    hold_times.endpoint.set("report")
    return (await session.execute(text("select count(*) from orders, pg_sleep(0.2)"))).scalar_one()


@app.post("/checkout")
async def checkout(session: Session) -> int:
    hold_times.endpoint.set("checkout")
    order = Order(amount=7)
    session.add(order)
    await session.flush()
    with timed("http"):
        await payments.post("/charge", json={"order": order.id})  # with the connection held
    await session.commit()
    return order.id


@app.get("/forecast")
async def forecast(session: Session) -> int:
    hold_times.endpoint.set("forecast")
    amounts = (await session.scalars(select(Order.amount).limit(1000))).all()
    with timed("own code"):
        return sum(smoothed(amounts, step) for step in range(600))


@app.get("/orders/{number}")
async def one(number: int, session: Session) -> int:
    hold_times.endpoint.set("one")
    return await session.scalar(select(func.count()).where(Order.id == number)) or 0


@app.get("/hold-times")
async def times() -> dict[str, float]:
    return hold_times.SECONDS
