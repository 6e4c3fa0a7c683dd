from __future__ import annotations

import sys
from pathlib import Path

import asking

Path("shop.py").write_text(
    """\
from typing import Annotated
from fastapi import Depends, FastAPI
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
class Base(DeclarativeBase): pass
class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
app = FastAPI()
engine = create_async_engine(URL)
maker = async_sessionmaker(engine)
async def a_session():
    async with maker() as session:
        yield session
Session = Annotated[AsyncSession, Depends(a_session)]
@app.get("/orm")
async def by_orm(session: Session):
    return len((await session.scalars(select(Item))).all())
@app.get("/core")
async def by_core():
    async with engine.connect() as connection:
        return (await connection.execute(text("select 1"))).scalar()
def in_a_greenlet(session):
    return len(session.execute(select(Item)).all())
@app.get("/sync")
async def by_run_sync(session: Session):
    return await session.run_sync(in_a_greenlet)
@app.get("/add")
async def by_flush(session: Session):
    session.add(Item())
    await session.commit()
""".replace("URL", repr(sys.argv[1].replace("sqlite:", "sqlite+aiosqlite:")))
)
sys.path.insert(0, str(Path.cwd()))
import shop  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402
from sqlalchemy import create_engine  # noqa: E402

shop.Base.metadata.create_all(create_engine(sys.argv[1]))
asking.of("shop")
with TestClient(shop.app) as client:
    for how, address, function, fragment in (
        ("ORM, AsyncSession", "/orm", "by_orm", "scalars("),
        ("Core, AsyncEngine", "/core", "by_core", "engine.connect("),
        ("ORM, run_sync", "/sync", "in_a_greenlet", "session.execute("),
        ("flush, AsyncSession", "/add", "by_flush", "commit()"),
    ):
        asking.ask(how, lambda address=address: client.get(address), "shop.py", function, fragment)
sys.stdout.flush()
