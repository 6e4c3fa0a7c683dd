"""What is wrong with a pool: one word and its reason, from the facts of that pool alone. Pure.

The nodes judge each pool by itself; percentiles over unlike pools say nothing of either. A row that sums
pools has each word that one of them has, and quotes the gravest pool that has it. What is not known makes no
verdict. The words, the gravest first, and when a pool has them (`docs/verdicts.rst` has them as a table, each
with its tests):

LEAK
    A connection does not come back: it has been held for `held_long`, and nobody works with it. Its holder
    has ended: that suffices, unless such holds are usual for its line. Where the holder is elsewhere, or is
    not known, that alone says nothing (who takes a session in a helper is elsewhere when he works with it):
    then only a hold of `SURE` times the usual one of its line is a leak, or of its pool where the line is
    not known. A holder in work of its own, in the function that took the connection, is none.

    Where the holder is elsewhere, two things more are a leak, since a line that leaks each time has no usual
    one: where not enough holds of the line have ended, `SURE` times the usual one of the pool; and where none
    has ever ended, `NEVER` times `held_long`. Else, without history, no verdict.
BLOCKED
    A connection has been held for `held_long`, by a holder that waits for the database, and that is `UNUSUAL`
    times the usual or has no history: a lock, mostly. It is never a leak. Who has detached a connection from
    its pool means to keep it: such a one is not blocked.
SATURATED
    Somebody waits, and all of the pool's capacity is checked out. The reason has what fills the pool.
TIMEOUTS
    At least `timeouts` checkouts gave up within the last one to two minutes.
LOST
    All processes of the row have been silent for longer than the lease: what they have now is not known.
SLOW CONNECT
    The database takes `slow_connect` to let a connection in (p95 of `SAMPLES` connects at least, lately).
OVERCOMMIT
    Of a database server: its pools together may open more connections than it takes (`server_max` in the
    config). Nothing has failed yet, but it will under load.

A pool can have several; the gravest is shown, and the others follow in its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias, get_args

from connmon.protocol.rows import Verdict
from connmon.protocol.text import short_age as age
from connmon.protocol.text import short_duration as duration
from connmon.protocol.values import HolderIn, VerdictWord

Word: TypeAlias = VerdictWord
Stuck: TypeAlias = Literal["LEAK", "BLOCKED"]

#: The gravest first.
WORDS: Final[tuple[Word, ...]] = get_args(VerdictWord)

#: A hold of so many times the usual one is unusual, and of so many is so for sure.
UNUSUAL: Final = 3.0
SURE: Final = 10.0
#: A hold of so many times `held_long`, at a line that has never given anything back, is a leak.
NEVER: Final = 10.0
#: Seconds from which on a process looks where its holders are (the plugin's `connmon_held`). Before them it
#: is not known, which says nothing.
LOOKED_FOR: Final = 30.0
#: So many holds or connects must have ended before their times say what is usual.
SAMPLES: Final = 3
#: Characters of a line of code, or of a pool's URL, in a reason.
LONGEST_LINE: Final = 160
#: Seconds of a hold from which on the application's own work in it is worth a word, where holds are short.
NOTICED: Final = 0.1
#: How many lines the reason of SATURATED names.
LINES: Final = 2


class Thresholds(NamedTuple):
    """What can be set in the config, per service, as `verdict_` and the name."""

    held_long: float = 30.0
    """Seconds after which a connection has been held long."""
    short_hold: float = 1.0
    """Seconds below which holds are short, so that a larger pool helps."""
    slow_connect: float = 1.0
    """Seconds for making a connection (p95) from which on that is slow."""
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
    line_ended: int | None = None
    """How many holds of its line have ended. None: the line is not known, or nothing was reported of it."""
    line_usual: float | None = None
    """What 95 % of these took at most."""
    detached: bool = False
    """Whether it was taken out of its pool for good, where it takes nobody's place."""


class PoolFacts(NamedTuple):
    """What is known of one pool, as of its process's last report."""

    capacity: int | None = None
    """None: no limit."""
    checked_out: int = 0
    waiting: int = 0
    longest_wait: float = 0.0
    """Of those who wait now."""
    longest_held: float | None = None
    held: Sequence[Hold] = ()
    """The connections held now, as far as they are known one by one."""
    held_p95: float | None = None
    """Of holds that ended lately; of how many."""
    held_samples: int = 0
    held_mean: float | None = None
    """Of all holds that ever ended; of how many."""
    held_ended: int = 0
    recent_timeouts: int = 0
    connect_p95: float | None = None
    """Of connects that ended lately; of how many."""
    connect_samples: int = 0
    headroom: int | None = None
    """How many more connections its database server takes. None: not known."""


def stuck(facts: PoolFacts, thresholds: Thresholds = DEFAULTS) -> dict[int, Stuck]:
    """Return which of the held connections are leaked or blocked, by their numbers."""
    found: dict[int, Stuck] = {}
    for hold in facts.held:
        word = _stuck(hold, facts, thresholds)
        if word is not None:
            found[hold.number] = word
    return found


def judge(
    facts: PoolFacts, thresholds: Thresholds = DEFAULTS, words: Mapping[int, Stuck] | None = None
) -> tuple[Verdict, ...]:
    """Return what is wrong with the pool, the gravest first; `words`: what `stuck` has returned, if known."""
    found: list[Verdict] = []
    if words is None:
        words = stuck(facts, thresholds)
    leaked = [hold for hold in facts.held if words.get(hold.number) == "LEAK"]
    blocked = [hold for hold in facts.held if words.get(hold.number) == "BLOCKED"]
    if leaked:
        found.append(Verdict("LEAK", _leak(leaked, facts)))
    if blocked:
        found.append(Verdict("BLOCKED", _blocked(blocked, facts)))
    if _is_saturated(facts):
        # What is detached takes nobody's place.
        held = [hold for hold in facts.held if not hold.detached]
        longest = None if facts.held and not held else facts.longest_held
        filling = facts._replace(held=held, longest_held=longest)
        leaks = sum(not hold.detached for hold in leaked)
        found.append(Verdict("SATURATED", _saturation(filling, leaks, len(blocked), thresholds)))
    if facts.recent_timeouts >= max(1, thresholds.timeouts):
        found.append(Verdict("TIMEOUTS", _timeouts(facts.recent_timeouts)))
    slow = facts.connect_p95
    if slow is not None and slow >= thresholds.slow_connect and facts.connect_samples >= SAMPLES:
        found.append(
            Verdict(
                "SLOW CONNECT",
                f"making a connection takes {duration(slow)} (p95): look at the database server, its name "
                "lookups and the network; a larger pool_size makes fewer of them",
            )
        )
    return tuple(found)


def gravity(verdict: Verdict, facts: PoolFacts) -> tuple[int, float]:
    """Return a key of a pool's verdict: the graver of two pools has the larger one."""
    much = {
        "LEAK": facts.longest_held,
        "BLOCKED": facts.longest_held,
        "SATURATED": facts.waiting,
        "TIMEOUTS": facts.recent_timeouts,
        "SLOW CONNECT": facts.connect_p95,
    }.get(verdict.word)
    return (rank(verdict.word), float(much or 0.0))


def line_reason(word: Stuck, connections: int, longest: float, usual: float | None) -> str:
    """Return the reason of a line's verdict: of how many of its connections that is, and for how long."""
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
    """Return the line that holds most of what is checked out of a saturated pool, and its verdict.

    None: no line does, or their lines are not known. `words`: what `stuck` has returned, if known.
    """
    held = [hold for hold in facts.held if not hold.detached]
    counts = Counter([hold.call_site for hold in held if hold.call_site])
    line, number = max(counts.items(), key=lambda entry: entry[1], default=("", 0))
    if not _is_saturated(facts) or 2 * number <= facts.checked_out:
        return None
    if words is None:
        words = stuck(facts, thresholds)
    found = [words.get(hold.number) for hold in held]
    if number < facts.checked_out:
        text = f"{number} connections taken here are most of the {facts.checked_out} of a full pool"
    else:
        text = f"{number} connections taken here fill" if number > 1 else "a connection taken here fills"
        text += " a pool"
    text += f" for which {_waits(facts)}"
    longest = max(hold.seconds for hold in held)
    advice = _advice(
        facts._replace(held=held), found.count("LEAK"), found.count("BLOCKED"), longest, thresholds
    )  # fmt: skip
    return line, Verdict("SATURATED", f"{text}: {advice}")


def lost(processes: int = 1) -> Verdict:
    """Return the verdict of a row all of whose processes are lost; the reader says for how long."""
    if processes == 1:
        return Verdict("LOST", "the process is stopped, or its host or network is down")
    return Verdict("LOST", f"its {processes} processes are stopped, or their host or network is down")


def overcommit(capacity: int | None, most: int | None, server: object) -> Verdict | None:
    """Return the verdict of a database server whose pools may open `capacity` connections."""
    if most is None or capacity is None or capacity <= most:
        return None
    return Verdict(
        "OVERCOMMIT",
        f"pools may open {capacity} connections to {server}, which takes {most}: lower pool_size and "
        "max_overflow, or raise the server's maximum",
    )


def pool_name(url: str) -> str:
    """Return how a reason names a pool."""
    return f"pool {_short(url)}"


def quoted(verdict: Verdict, where: str) -> Verdict:
    """Return a pool's verdict as that of a row that sums several; `where` says which pool it is."""
    return Verdict(verdict.word, f"{where}: {verdict.reason}")


def rank(word: str | None) -> int:
    """Return how grave a word is: 0 for none, larger is graver."""
    return len(WORDS) - WORDS.index(word) if word in WORDS else 0


def explained(verdicts: Iterable[Verdict]) -> str:
    """Return all of them in one line; "" where nothing is wrong."""
    return "; ".join(f"{verdict.word}: {verdict.reason}" for verdict in verdicts)


def _is_saturated(facts: PoolFacts) -> bool:
    return bool(facts.waiting) and (facts.capacity is None or facts.checked_out >= facts.capacity)


# --- The rules ----------------------------------------------------------------------------------


def _stuck(hold: Hold, facts: PoolFacts, thresholds: Thresholds) -> Stuck | None:
    where, seconds = hold.holder_in, hold.seconds
    if seconds < thresholds.held_long:
        return None
    usual = _usual_of_line(hold)
    if where == "ended":
        return "LEAK" if usual is None or seconds > usual else None
    if where == "database":
        if hold.detached:
            return None
        usual = _usual_of_pool(facts) if usual is None else usual
        return "BLOCKED" if usual is None or seconds >= UNUSUAL * usual else None
    if where is None and seconds < LOOKED_FOR:
        return None
    if where in ("application", "waiting") and hold.line_ended is not None:  # it will come back from that
        return None
    # Who keeps a detached connection, keeps it on purpose: other lines' holds say nothing of it.
    elsewhere = where == "elsewhere" and not hold.detached
    if elsewhere and hold.line_ended == 0 and seconds >= NEVER * thresholds.held_long:
        return "LEAK"
    if usual is None and (elsewhere or hold.line_ended is None):
        usual = _usual_of_pool(facts)
    return "LEAK" if usual is not None and seconds >= SURE * usual else None


def _usual_of_line(hold: Hold) -> float | None:
    """Return how long holds of its line take, where enough of them have ended to say so."""
    return hold.line_usual if (hold.line_ended or 0) >= SAMPLES else None


def _usual_of_pool(facts: PoolFacts) -> float | None:
    """Return how long holds of the pool take: those that ended lately, else all, where these are enough."""
    if facts.held_p95 is not None and facts.held_samples >= SAMPLES:
        return facts.held_p95
    return facts.held_mean if facts.held_ended >= SAMPLES else None


# --- Their reasons --------------------------------------------------------------------------------

_WHERE: Final[Mapping[HolderIn | None, str]] = {
    "ended": "its thread or task has ended",
    "elsewhere": "its holder is elsewhere",
    "application": "its holder is in work of its own",
    "waiting": "its holder waits for another connection",
    "database": "in the database",
    None: "",
}


#: The same of several, in a list of lines.
_PLACES: Final[Mapping[HolderIn, str]] = {
    "database": "in the database",
    "application": "in own work",
    "waiting": "waiting for another connection",
}


def _longest(holds: Sequence[Hold], facts: PoolFacts) -> str:
    """Say how many these are, where they were taken, for how long held, and what is usual."""
    first = max(holds, key=lambda hold: (hold.seconds, -hold.number))
    if len(holds) == 1:
        text = f"a connection{_taken(first)} has been held for {age(first.seconds)}"
    else:
        text = f"{len(holds)} connections are held, the longest{_taken(first)} for {age(first.seconds)}"
    where = _WHERE[first.holder_in]
    if first.holder_site and first.holder_site != first.call_site and first.holder_in != "database":
        where = f"{where or 'its holder is'} (now at {_short(first.holder_site)})"
    if where:
        text += f", {where}" if first.holder_in != "database" else f" {where}"
    of_line = _usual_of_line(first)
    if of_line is not None:
        text += f", where {duration(of_line)} is usual for that line (p95)"
    elif facts.held_p95 is not None and facts.held_samples >= SAMPLES:
        text += f", where {duration(facts.held_p95)} is usual in that pool (p95)"
    elif facts.held_mean is not None and facts.held_ended >= SAMPLES:
        text += f", where {duration(facts.held_mean)} is the mean in that pool"
    return text


def _taken(hold: Hold) -> str:
    return f" taken at {_short(hold.call_site)}" if hold.call_site else ""


def _short(line: str) -> str:
    """Return a line of code, of a long path the end only: a reason is one line for people."""
    return line if len(line) <= LONGEST_LINE else f"...{line[3 - LONGEST_LINE :]}"


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


def _waits(facts: PoolFacts) -> str:
    """Say how many wait, and for how long."""
    text = f"{facts.waiting} wait{'s' * (facts.waiting == 1)}"
    return f"{text} up to {duration(facts.longest_wait)}" if facts.longest_wait else text


def _saturation(facts: PoolFacts, leaked: int, blocked: int, thresholds: Thresholds) -> str:
    most = "unlimited" if facts.capacity is None else facts.capacity
    reason = f"{_waits(facts)}, {facts.checked_out} of {most} checked out"
    if lines := _lines(facts.held):
        reason += f", taken at {lines}"
    elif lines := _lines([hold._replace(call_site=hold.holder_site) for hold in facts.held]):
        reason += f", their holders now at {lines}"
    if facts.held_p95 is not None:
        reason += f", held {duration(facts.held_p95)} (p95)"
    longest = max([hold.seconds for hold in facts.held], default=facts.longest_held)
    if longest is not None:
        reason += f", the longest now for {duration(longest)}"
    return f"{reason}: {_advice(facts, leaked, blocked, longest, thresholds)}"


def _lines(holds: Sequence[Hold]) -> str:
    """Return the lines that hold most, with how many each holds and where their holders are mostly."""
    counts = Counter([hold.call_site for hold in holds if hold.call_site])
    lines = []
    for line, count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:LINES]:
        of_line = [hold for hold in holds if hold.call_site == line]
        lines.append(f"{_short(line)} ({', '.join(filter(None, [str(count), _places(of_line)]))})")
    more = len(counts) - len(lines)
    return " and ".join(lines) + (f" and {more} more line{'s' * (more != 1)}" if more > 0 else "")


def _places(holds: Sequence[Hold]) -> str:
    """Say where these holders are."""
    places = Counter([hold.holder_in for hold in holds if hold.holder_in is not None])
    found = []
    for place, count in sorted(places.items(), key=lambda entry: (-entry[1], entry[0])):
        text = _PLACES.get(place, place)
        if place in ("application", "waiting"):
            sites = Counter([h.holder_site for h in holds if h.holder_in == place and h.holder_site])
            if sites:
                text += f" at {_short(max(sites.items(), key=lambda entry: (entry[1], entry[0]))[0])}"
        found.append(text if count == len(holds) else f"{count} {text}")
    return ", ".join(found)


def _advice(
    facts: PoolFacts, leaked: int, blocked: int, longest: float | None, thresholds: Thresholds
) -> str:
    """Return what to do, by what fills the pool."""
    if leaked:
        are = "connection is" if leaked == 1 else "connections are"
        return f"the cause: {leaked} leaked {are} never given back; give back what is taken"
    if blocked:
        are = "connection waits" if blocked == 1 else "connections wait"
        return f"the cause: {blocked} blocked {are} in the database; look for the lock"
    known = [seconds for seconds in (longest, facts.held_p95) if seconds is not None]
    places = Counter([hold.holder_in for hold in facts.held if hold.holder_in is not None])
    place = max(places.items(), key=lambda entry: (entry[1], entry[0]))[0] if places else None
    if place == "waiting":  # a larger pool only makes the same happen later
        return (
            "the cause: who holds a connection waits for another one: use one at a time, or give the first "
            "back before the second is taken"
        )
    if known and max(known) < thresholds.short_hold:
        own_work = place == "application" and max(known) >= NOTICED
        first = "give connections back before the application's own work, or " if own_work else ""
        if facts.headroom is None:
            return f"holds are short: {first}raise pool_size"
        if facts.headroom > 0:
            return (
                f"holds are short: {first}raise pool_size (the database server takes {facts.headroom} more)"
            )
        return (
            "holds are short, but the database server takes no more connections: have fewer of them wanted "
            "at once, or raise the server's maximum before pool_size"
        )
    if place == "database":
        return "the database takes the time: shorten the transaction or its statements, or look for a lock"
    if place == "application":
        return "the application's own work takes the time: take it out of the transaction"
    if place in ("elsewhere", "ended"):
        return "nobody works with most of them: give them back sooner"
    return "shorten the transaction: hold for a shorter time"
