"""The table of orders, and what both applications of orders compute."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class OrdersBase(DeclarativeBase):
    pass


class Order(OrdersBase):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int] = mapped_column(default=1)


def smoothed(amounts: Sequence[int], step: int) -> int:
    total = 0
    for number, amount in enumerate(amounts):
        total += amount * (number % (step + 1))
    return total
