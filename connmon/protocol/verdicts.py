"""Judge what is wrong with a pool: one word and its reason, from the facts of that pool alone. Pure.

The nodes judge each pool by itself; percentiles over unlike pools say nothing about either. A row that sums
pools has each word that one of them has, and quotes the gravest pool that has it. An unknown value makes no
verdict. The words, the gravest first, and when a pool has them (`docs/verdicts.rst` has them as a table, each
with its tests):

LEAK
    A connection does not come back: it has been held for `held_long`, and nobody works with it. If its holder
    has ended, that suffices, unless such holds are usual for its call site. A holder that is elsewhere or
    unknown proves nothing (a session that a helper function takes is used elsewhere): then only a hold of
    `SURE_FACTOR` times the usual one of its call site is a leak, or of its pool if the call site is unknown.
    A holder in work of its own, in the function that took the connection, is no leak.

    If the holder is elsewhere, two more cases are a leak, since a call site that leaks each time has no usual
    hold: `SURE_FACTOR` times the usual hold of the pool, if too few holds of the call site have ended; and
    `NEVER_FACTOR` times `held_long`, if none has ever ended. Otherwise no history means no verdict.
BLOCKED
    A connection has been held for `held_long` by a holder that waits for the database, and that is
    `UNUSUAL_FACTOR` times the usual hold or has no history: mostly a lock. It is never a leak. A connection
    detached from its pool is kept on purpose, so it is never blocked.
SATURATED
    Somebody waits, and all of the pool's capacity is checked out. The reason says what fills the pool, and
    which call site takes most of the program's connection time, if one takes `QUOTED_SHARE` of it.
TIMEOUTS
    At least `timeouts` checkouts gave up within the last one to two minutes.
LOST
    All processes of the row have been silent for longer than the lease: their present is unknown.
SLOW CONNECT
    The database takes `slow_connect` to accept a connection (p95 of `LEAST_SAMPLES` recent connects or more).
OVERCOMMIT
    Of a database server: its pools together may open more connections than it takes (`server_max` in the
    config). Nothing has failed yet, but it will under load.

A pool can have several; the gravest is shown, and the others follow in its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias, get_args

from connmon.protocol.reports import HoldProfile
from connmon.protocol.rows import Verdict
from connmon.protocol.text import HOLDER_WORDS
from connmon.protocol.text import short_age as age
from connmon.protocol.text import short_duration as duration
from connmon.protocol.values import (
    IN_DATABASE,
    OTHER_CALL_SITES,
    OTHER_LABELS,
    HolderIn,
    VerdictWord,
    largest_first,
)

Stuck: TypeAlias = Literal["LEAK", "BLOCKED"]

#: The gravest first.
WORDS: Final[tuple[VerdictWord, ...]] = get_args(VerdictWord)

#: A hold of this many times the usual one is unusual, or certainly so.
UNUSUAL_FACTOR: Final = 3.0
SURE_FACTOR: Final = 10.0
#: A hold of this many times `held_long`, at a call site that has never given anything back, is a leak.
NEVER_FACTOR: Final = 10.0
#: From this age of a hold on, a process looks where the holder is (the plugin's `connmon_held`). Before, an
#: unknown holder says nothing.
LOOKED_FOR_SECONDS: Final = 30.0
#: This many holds or connects must have ended before their times say what is usual.
LEAST_SAMPLES: Final = 3
#: Characters of a call site, or of a pool's URL, in a reason.
NAME_CHARACTERS: Final = 160
#: From this length of a hold on, the application's own work in it is mentioned, if holds are short.
NOTICED_SECONDS: Final = 0.1
#: How many call sites the reason of SATURATED names.
NAMED_CALL_SITES: Final = 2
#: The reason of SATURATED names the call site that takes most time from this share and this time on, if it is
#: known of at least this part where it was spent.
QUOTED_SHARE: Final = 0.3
QUOTED_SECONDS: Final = 5.0
QUOTED_KNOWN: Final = 0.5


class Thresholds(NamedTuple):
    """The options `verdict_` and the name of a service in the config."""

    held_long: float = 30.0
    """Seconds from which on a hold is long."""
    short_hold: float = 1.0
    """Seconds below which holds are short, so that a larger pool helps."""
    slow_connect: float = 1.0
    """Seconds from which on connects (p95) are slow."""
    timeouts: int = 1
    """Checkouts that gave up within the last one to two minutes."""


DEFAULTS: Final = Thresholds()


class Hold(NamedTuple):
    """One held connection."""

    number: int
    seconds: float
    call_site: str | None = None
    holder_in: HolderIn | None = None
    holder_site: str | None = None
    server_id: int | None = None
    call_site_ended: int | None = None
    """How many holds of its call site have ended. None: the call site is unknown, or nothing was reported."""
    call_site_usual: float | None = None
    """Seconds that 95 % of these took at most."""
    detached: bool = False
    """Whether it was taken out of its pool for good, so that it takes no place there."""


class TopCallSite(NamedTuple):
    """The call site that takes most of the time for which a program's connections to a database are held."""

    program: str
    call_site: str
    share: float
    """Its part of that time, 0 to 1."""
    in_database: float
    """The part of its time in which the holders were in the database, 0 to 1."""
    label: str | None
    """Where else they were most. None: nowhere, or that has no name."""
    database: str | None = None
    """The database's name. None: the program holds time in no other one."""


class PoolFacts(NamedTuple):
    """The facts about one pool, as of its process's last report. Times are seconds."""

    capacity: int | None = None
    """None: no limit."""
    checked_out: int = 0
    waiting: int = 0
    longest_wait: float = 0.0
    """Of the waits that go on."""
    longest_held: float | None = None
    held: Sequence[Hold] = ()
    """The held connections that are known one by one."""
    held_p95: float | None = None
    """Of the holds that ended lately."""
    held_samples: int = 0
    """How many these are."""
    held_mean: float | None = None
    """Of all holds that ever ended."""
    held_ended: int = 0
    """How many these are."""
    recent_timeouts: int = 0
    connect_p95: float | None = None
    """Of the connects that ended lately."""
    connect_samples: int = 0
    """How many these are."""
    headroom: int | None = None
    """How many more connections its database server takes. None: unknown."""
    top: TopCallSite | None = None
    """Of its program and database, in the last one to two minutes. None: unknown, or there is none."""


def top_call_site(
    program: str, held_ms: int, call_site: str, profile: HoldProfile, database: str | None = None
) -> TopCallSite | None:
    """Return what the reason of SATURATED says of the call site that takes most time; None: nothing.

    `held_ms` is how long the program's connections to the database were held, all call sites together;
    `profile` has the same time of this call site alone. `database`: its name, if the program holds time in
    others too.
    """
    known_ms = sum(profile.where.values())
    if (
        call_site == OTHER_CALL_SITES
        or profile.held_ms < 1000 * QUOTED_SECONDS
        or profile.held_ms < QUOTED_SHARE * held_ms
        or known_ms < QUOTED_KNOWN * profile.held_ms
    ):
        return None
    others = [(ms, label) for label, ms in profile.where.items() if ms and label != IN_DATABASE]
    label = max(others, key=lambda other: (other[0], other[1]), default=(0, OTHER_LABELS))[1]
    return TopCallSite(
        program=program,
        call_site=call_site,
        share=min(1.0, profile.held_ms / held_ms) if held_ms else 1.0,
        in_database=profile.where.get(IN_DATABASE, 0) / known_ms,
        label=None if label == OTHER_LABELS else label,
        database=database,
    )


def stuck(facts: PoolFacts, thresholds: Thresholds = DEFAULTS) -> dict[int, Stuck]:
    """Return which of the held connections are leaked or blocked, by their numbers."""
    words = ((hold.number, _stuck(hold, facts, thresholds)) for hold in facts.held)
    return {number: word for number, word in words if word is not None}


def judge(
    facts: PoolFacts, thresholds: Thresholds = DEFAULTS, words: Mapping[int, Stuck] | None = None
) -> tuple[Verdict, ...]:
    """Return what is wrong with the pool, the gravest first.

    `words`: the result of `stuck` for these facts, if the caller has it already.
    """
    if words is None:
        words = stuck(facts, thresholds)
    leaked = [hold for hold in facts.held if words.get(hold.number) == "LEAK"]
    blocked = [hold for hold in facts.held if words.get(hold.number) == "BLOCKED"]
    verdicts: list[Verdict] = []
    if leaked:
        verdicts.append(Verdict("LEAK", _leak(leaked, facts)))
    if blocked:
        verdicts.append(Verdict("BLOCKED", _blocked(blocked, facts)))
    if _is_saturated(facts):
        verdicts.append(Verdict("SATURATED", _saturation(facts, leaked, len(blocked), thresholds)))
    if facts.recent_timeouts >= max(1, thresholds.timeouts):
        verdicts.append(Verdict("TIMEOUTS", _timeouts(facts.recent_timeouts)))
    slow = facts.connect_p95
    if slow is not None and slow >= thresholds.slow_connect and facts.connect_samples >= LEAST_SAMPLES:
        verdicts.append(Verdict("SLOW CONNECT", _slow_connect(slow)))
    return tuple(verdicts)


def gravity(verdict: Verdict, facts: PoolFacts) -> tuple[int, float]:
    """Return a key of a pool's verdict: of two pools, the graver one has the larger key."""
    extent = {
        "LEAK": facts.longest_held,
        "BLOCKED": facts.longest_held,
        "SATURATED": facts.waiting,
        "TIMEOUTS": facts.recent_timeouts,
        "SLOW CONNECT": facts.connect_p95,
    }.get(verdict.word)
    return rank(verdict.word), float(extent or 0.0)


def call_site_reason(word: Stuck, connections: int, longest: float, usual: float | None) -> str:
    """Return the reason of a call site's verdict.

    `connections`: how many of its connections have the verdict; `longest`, `usual`: seconds of a hold.
    """
    if connections == 1:
        text = f"a connection taken here has been held for {age(longest)}"
    else:
        text = f"{connections} connections taken here are held, the longest for {age(longest)}"
    if word == "BLOCKED":
        text += " in the database"
    if usual is not None:
        text += f", where {duration(usual)} is usual (p95)"
    return f"{text}: {'give back what is taken' if word == 'LEAK' else 'look for a lock'}"


def filler(
    facts: PoolFacts, thresholds: Thresholds = DEFAULTS, words: Mapping[int, Stuck] | None = None
) -> tuple[str, Verdict] | None:
    """Return the call site that holds most of what is checked out of a saturated pool, and its verdict.

    None: no call site does, or they are unknown. `words` as in `judge`.
    """
    held = [hold for hold in facts.held if not hold.detached]
    counts = Counter([hold.call_site for hold in held if hold.call_site])
    site, number = max(counts.items(), key=lambda entry: entry[1], default=("", 0))
    if not _is_saturated(facts) or 2 * number <= facts.checked_out:
        return None
    if words is None:
        words = stuck(facts, thresholds)
    of_held = [words.get(hold.number) for hold in held]
    if number < facts.checked_out:
        text = f"{number} connections taken here are most of the {facts.checked_out} of a full pool"
    else:
        text = f"{number} connections taken here fill" if number > 1 else "a connection taken here fills"
        text += " a pool"
    text += f" for which {_waits(facts)}"
    if facts.top is not None:
        text += f"; {_time_spent(facts.top)}"
    longest = max(hold.seconds for hold in held)
    advice = _advice(
        facts._replace(held=held), of_held.count("LEAK"), of_held.count("BLOCKED"), longest, thresholds
    )  # fmt: skip
    return site, Verdict("SATURATED", f"{text}: {advice}")


def lost(processes: int = 1) -> Verdict:
    """Return the verdict of a row all of whose processes are lost. The reader adds for how long."""
    if processes == 1:
        return Verdict("LOST", "the process is stopped, or its host or network is down")
    return Verdict("LOST", f"its {processes} processes are stopped, or their host or network is down")


def overcommit(capacity: int | None, most: int | None, server: object) -> Verdict | None:
    """Return the verdict of a database server that takes `most` connections.

    `capacity`: how many its pools may open. None, as for `most`: unknown, so there is no verdict.
    """
    if most is None or capacity is None or capacity <= most:
        return None
    return Verdict(
        "OVERCOMMIT",
        f"pools may open {capacity} connections to {server}, which takes {most}: lower pool_size and "
        "max_overflow, or raise the server's maximum",
    )


def pool_name(url: str) -> str:
    """Return the name of a pool in a reason."""
    return f"pool {_short(url)}"


def quoted(verdict: Verdict, where: str) -> Verdict:
    """Return a pool's verdict for a row that sums several pools; `where` names the pool."""
    return Verdict(verdict.word, f"{where}: {verdict.reason}")


def rank(word: str | None) -> int:
    """Return the gravity of a word: 0 for none, larger is graver."""
    return len(WORDS) - WORDS.index(word) if word in WORDS else 0


def explained(verdicts: Iterable[Verdict]) -> str:
    """Return all verdicts in one line; "" for none."""
    return "; ".join(f"{verdict.word}: {verdict.reason}" for verdict in verdicts)


def _is_saturated(facts: PoolFacts) -> bool:
    return bool(facts.waiting) and (facts.capacity is None or facts.checked_out >= facts.capacity)


# --- The rules ----------------------------------------------------------------------------------


def _stuck(hold: Hold, facts: PoolFacts, thresholds: Thresholds) -> Stuck | None:
    where, seconds = hold.holder_in, hold.seconds
    if seconds < thresholds.held_long:
        return None
    usual = _usual_of_call_site(hold)
    if where == "ended":
        return "LEAK" if usual is None or seconds > usual else None
    if where == "database":
        if hold.detached:
            return None
        usual = _usual_of_pool(facts) if usual is None else usual
        return "BLOCKED" if usual is None or seconds >= UNUSUAL_FACTOR * usual else None
    if where is None and seconds < LOOKED_FOR_SECONDS:
        return None
    if where in ("application", "waiting") and hold.call_site_ended is not None:  # it will come back
        return None
    # A detached connection is kept on purpose: the holds of other call sites say nothing about it.
    elsewhere = where == "elsewhere" and not hold.detached
    if elsewhere and hold.call_site_ended == 0 and seconds >= NEVER_FACTOR * thresholds.held_long:
        return "LEAK"
    if usual is None and (elsewhere or hold.call_site_ended is None):
        usual = _usual_of_pool(facts)
    return "LEAK" if usual is not None and seconds >= SURE_FACTOR * usual else None


def _usual_of_call_site(hold: Hold) -> float | None:
    """Return how long holds of its call site take. None: too few have ended."""
    return hold.call_site_usual if (hold.call_site_ended or 0) >= LEAST_SAMPLES else None


def _usual_of_pool(facts: PoolFacts) -> float | None:
    """Return how long holds of the pool take, lately or else ever. None: too few have ended."""
    if facts.held_p95 is not None and facts.held_samples >= LEAST_SAMPLES:
        return facts.held_p95
    return facts.held_mean if facts.held_ended >= LEAST_SAMPLES else None


# --- Their reasons --------------------------------------------------------------------------------


def _longest(holds: Sequence[Hold], facts: PoolFacts) -> str:
    """Return how many connections are held, where the longest was taken, for how long, and what is usual."""
    first = max(holds, key=lambda hold: (hold.seconds, -hold.number))
    if len(holds) == 1:
        text = f"a connection{_taken(first)} has been held for {age(first.seconds)}"
    else:
        text = f"{len(holds)} connections are held, the longest{_taken(first)} for {age(first.seconds)}"
    if first.holder_in == "database":
        text += f" {HOLDER_WORDS['database'].clause}"
    else:
        clause = "" if first.holder_in is None else HOLDER_WORDS[first.holder_in].clause
        if first.holder_site and first.holder_site != first.call_site:
            clause = f"{clause or 'its holder is'} (now at {_short(first.holder_site)})"
        text += f", {clause}" if clause else ""
    return text + _usual(first, facts)


def _usual(hold: Hold, facts: PoolFacts) -> str:
    """Return what is usual for such a hold; "" if that is unknown."""
    of_call_site = _usual_of_call_site(hold)
    if of_call_site is not None:
        return f", where {duration(of_call_site)} is usual for that line (p95)"
    if facts.held_p95 is not None and facts.held_samples >= LEAST_SAMPLES:
        return f", where {duration(facts.held_p95)} is usual in that pool (p95)"
    if facts.held_mean is not None and facts.held_ended >= LEAST_SAMPLES:
        return f", where {duration(facts.held_mean)} is the mean in that pool"
    return ""


def _taken(hold: Hold) -> str:
    return f" taken at {_short(hold.call_site)}" if hold.call_site else ""


def _short(name: str) -> str:
    """Return a call site or a URL, only the end of a long one: a reason is one line for people."""
    return name if len(name) <= NAME_CHARACTERS else f"...{name[3 - NAME_CHARACTERS :]}"


def _leak(holds: Sequence[Hold], facts: PoolFacts) -> str:
    advice = "give it back" if len(holds) == 1 else "give them back"
    if all(hold.holder_in == "application" for hold in holds):
        advice += " before that work"
    elif not any(hold.call_site for hold in holds):
        advice = f"see its call site and {advice}"
    return f"{_longest(holds, facts)}: {advice}"


def _blocked(holds: Sequence[Hold], facts: PoolFacts) -> str:
    first = max(holds, key=lambda hold: (hold.seconds, -hold.number))
    which = "ID" if first.server_id is None else str(first.server_id)
    return (
        f"{_longest(holds, facts)}: look for a lock: connmon whois {which} --database URL "
        "names the session that blocks"
    )


def _timeouts(number: int) -> str:
    return (
        f"{number} checkout{'s' * (number != 1)} gave up waiting in the last minutes: the application got an "
        "error; see who waits and who holds"
    )


def _slow_connect(seconds: float) -> str:
    return (
        f"making a connection takes {duration(seconds)} (p95): look at the database server, its name "
        "lookups and the network; a larger pool_size makes fewer of them"
    )


def _waits(facts: PoolFacts) -> str:
    """Return how many wait, and for how long."""
    text = f"{facts.waiting} wait{'s' * (facts.waiting == 1)}"
    return f"{text} up to {duration(facts.longest_wait)}" if facts.longest_wait else text


def _saturation(facts: PoolFacts, leaked: Sequence[Hold], blocked: int, thresholds: Thresholds) -> str:
    """Return what fills the pool, and what to do. Detached connections take no place in it."""
    held = [hold for hold in facts.held if not hold.detached]
    facts = facts._replace(held=held, longest_held=None if facts.held and not held else facts.longest_held)
    capacity = "unlimited" if facts.capacity is None else facts.capacity
    reason = f"{_waits(facts)}, {facts.checked_out} of {capacity} checked out"
    if sites := _call_sites(held):
        reason += f", taken at {sites}"
    elif sites := _call_sites([hold._replace(call_site=hold.holder_site) for hold in held]):
        reason += f", their holders now at {sites}"
    if facts.held_p95 is not None:
        reason += f", held {duration(facts.held_p95)} (p95)"
    longest = max([hold.seconds for hold in held], default=facts.longest_held)
    if longest is not None:
        reason += f", the longest now for {duration(longest)}"
    if facts.top is not None:
        reason += f"; {_time_spent(facts.top)}"
    in_pool = sum(not hold.detached for hold in leaked)
    return f"{reason}: {_advice(facts, in_pool, blocked, longest, thresholds)}"


def _time_spent(top: TopCallSite) -> str:
    within = "" if top.database is None else f" in {_short(top.database)}"
    text = f"{_percent(top.share)} of {_short(top.program)}'s pool time{within} is {_short(top.call_site)}, "
    if top.in_database >= 0.5:
        return f"{text}{_percent(top.in_database)} of it in the database"
    text += f"{_percent(1.0 - top.in_database)} of it outside the database"
    return text if top.label is None else f"{text} ({_short(top.label)})"


def _percent(part: float) -> str:
    return f"{round(100.0 * part)} %"


def _call_sites(holds: Sequence[Hold]) -> str:
    """Return the call sites that hold most, each with its number of holds and where most holders are."""
    counts = Counter([hold.call_site for hold in holds if hold.call_site])
    texts = []
    for site, count in largest_first(counts)[:NAMED_CALL_SITES]:
        of_site = [hold for hold in holds if hold.call_site == site]
        texts.append(f"{_short(site)} ({', '.join(filter(None, [str(count), _holder_places(of_site)]))})")
    more = len(counts) - len(texts)
    return " and ".join(texts) + (f" and {more} more line{'s' * (more != 1)}" if more > 0 else "")


def _holder_places(holds: Sequence[Hold]) -> str:
    """Return where the holders are, the most frequent place first."""
    counts = Counter([hold.holder_in for hold in holds if hold.holder_in is not None])
    texts = []
    for place, count in largest_first(counts):
        text = HOLDER_WORDS[place].brief
        if place in ("application", "waiting"):
            sites = Counter([h.holder_site for h in holds if h.holder_in == place and h.holder_site])
            if sites:
                text += f" at {_short(_most_frequent(sites))}"
        texts.append(text if count == len(holds) else f"{count} {text}")
    return ", ".join(texts)


def _most_frequent(counts: Counter[str]) -> str:
    return max(counts.items(), key=lambda entry: (entry[1], entry[0]))[0]


def _advice(
    facts: PoolFacts, leaked: int, blocked: int, longest: float | None, thresholds: Thresholds
) -> str:
    """Return what to do about a full pool, by what fills it."""
    if leaked:
        are = "connection is" if leaked == 1 else "connections are"
        return f"the cause: {leaked} leaked {are} never given back; give back what is taken"
    if blocked:
        are = "connection waits" if blocked == 1 else "connections wait"
        return f"the cause: {blocked} blocked {are} in the database; look for the lock"
    known = [seconds for seconds in (longest, facts.held_p95) if seconds is not None]
    counts: Counter[str] = Counter([hold.holder_in for hold in facts.held if hold.holder_in is not None])
    place = _most_frequent(counts) if counts else None
    if place == "waiting":  # a larger pool only makes the same happen later
        return (
            "the cause: who holds a connection waits for another one: use one at a time, or give the first "
            "back before the second is taken"
        )
    if known and max(known) < thresholds.short_hold:
        own_work = place == "application" and max(known) >= NOTICED_SECONDS
        return _advice_on_short_holds(own_work, facts.headroom)
    if place == "database":
        return "the database takes the time: shorten the transaction or its statements, or look for a lock"
    if place == "application":
        return "the application's own work takes the time: take it out of the transaction"
    if place in ("elsewhere", "ended"):
        return "nobody works with most of them: give them back sooner"
    return "shorten the transaction: hold for a shorter time"


def _advice_on_short_holds(own_work: bool, headroom: int | None) -> str:
    first = "give connections back before the application's own work, or " if own_work else ""
    if headroom is None:
        return f"holds are short: {first}raise pool_size"
    if headroom > 0:
        return f"holds are short: {first}raise pool_size (the database server takes {headroom} more)"
    return (
        "holds are short, but the database server takes no more connections: have fewer of them wanted "
        "at once, or raise the server's maximum before pool_size"
    )
