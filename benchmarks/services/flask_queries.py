from __future__ import annotations

import sys
from pathlib import Path

import asking

Path("shop.py").write_text("""\
import flask, flask_sqlalchemy
db = flask_sqlalchemy.SQLAlchemy()
class Item(db.Model):
    id = db.Column(db.Integer, primary_key=True)
def application(url):
    app = flask.Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    db.init_app(app)
    @app.route("/orm")
    def by_orm():
        return str(len(Item.query.all()))
    @app.route("/core")
    def by_core():
        return str(len(db.session.execute(db.select(Item.__table__)).all()))
    @app.route("/one")
    def or_404():
        return str(Item.query.get_or_404(7))
    @app.route("/page")
    def by_page():
        return str(db.paginate(db.select(Item)).total)
    @app.route("/add")
    def by_flush():
        db.session.add(Item())
        db.session.commit()
        return "added"
    return app
""")
sys.path.insert(0, str(Path.cwd()))
import shop  # noqa: E402

app = shop.application(sys.argv[1])
with app.app_context():
    shop.db.create_all()
asking.of("shop")
for how, address, function, fragment in (
    ("ORM", "/orm", "by_orm", "all()"),
    ("Core", "/core", "by_core", "execute("),
    ("ORM, get_or_404", "/one", "or_404", "get_or_404"),
    ("ORM, paginate", "/page", "by_page", "paginate("),
    ("flush", "/add", "by_flush", "commit()"),
):
    asking.ask(how, lambda address=address: app.test_client().get(address), "shop.py", function, fragment)
