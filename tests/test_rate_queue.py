"""Leases, votes and decisions: nothing lost, nothing twice, never more than asked."""

from __future__ import annotations

import itertools
import json
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from small_ledger import Clock, image_campaign, people

from curate.errors import StoreError, UsageError
from curate.rate import campaign, queue, rubric, votes
from curate.rate.consensus import VoteRule, decide
from curate.rate.ledger import Ledger
from curate.rate.votes import Action, Outcome


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "ratings.sqlite", clock)
    yield made
    made.close()


def take(ledger: Ledger, campaign_id: int, user: int, want: int = 1, have: tuple[int, ...] = ()) -> list[int]:
    """Leases that the person is given."""
    tasks = ledger.write(lambda db: queue.lease(db, campaign_id, user, want, list(have), ledger.clock()))
    return [task.lease for task in tasks]


def do(ledger: Ledger, campaign_id: int, user: int, action: Action) -> Outcome:
    return ledger.write(lambda db: votes.apply(db, campaign_id, user, action, ledger.clock()))


def vote(ledger: Ledger, campaign_id: int, user: int, lease: int, tier: int, key: str = "") -> Outcome:
    return do(ledger, campaign_id, user, Action(key or f"vote-{user}-{lease}", "vote", lease=lease, tier=tier))


def items(ledger: Ledger) -> list[sqlite3.Row]:
    return ledger.read().execute("SELECT * FROM items ORDER BY id").fetchall()


def sound(db: sqlite3.Connection) -> None:
    """What holds at any moment."""
    over = db.execute(
        "SELECT i.id FROM items AS i WHERE i.gold_tier IS NULL AND i.votes + (SELECT count(*) FROM leases AS l "
        "WHERE l.item_id = i.id AND l.closed_ms IS NULL AND l.kind = 'work') > i.wanted"
    ).fetchall()
    assert over == []
    counted = db.execute(
        "SELECT i.id FROM items AS i WHERE i.votes <> (SELECT count(*) FROM votes AS v WHERE v.item_id = i.id "
        "AND v.part = 'work') AND i.gold_tier IS NULL"
    ).fetchall()
    assert counted == []
    sums = db.execute(
        "SELECT c.cast_votes, c.done, (SELECT sum(votes) FROM items WHERE campaign_id = c.id AND gold_tier IS NULL), "
        "(SELECT count(tier) FROM items WHERE campaign_id = c.id) FROM campaigns AS c"
    ).fetchall()
    for cast, done, held, decided in sums:
        assert (cast, done) == (held, decided)
    for n in range(1, 6):
        assert (
            db.execute(
                f"SELECT id FROM campaigns AS c WHERE tier{n} <> (SELECT count(*) FROM items WHERE campaign_id = c.id "
                f"AND tier = {n})"
            ).fetchall()
            == []
        )
    numbers = (
        "SELECT (SELECT coalesce(sum(disputed), 0) FROM campaigns), (SELECT count(*) FROM items WHERE disputed > 0)"
    )
    said, listed = db.execute(numbers).fetchone()
    assert said == listed
    paces = db.execute("SELECT sum(votes), (SELECT count(*) FROM votes WHERE part = 'work') FROM pace").fetchone()
    assert (paces[0] or 0) == paces[1]


# the queue


def test_many_raters_in_two_processes_give_exactly_the_votes_that_were_asked(tmp_path: Path) -> None:
    path = tmp_path / "ratings.sqlite"
    ledgers = [Ledger(path), Ledger(path)]
    made = image_campaign(ledgers[0], 40)
    users = people(ledgers[0], 10)
    problems: list[str] = []

    def rate(user: int) -> None:
        ledger, pick = ledgers[user % 2], random.Random(user)
        have: list[int] = []
        while have := have or take(ledger, made, user, 5):
            outcome = vote(ledger, made, user, have.pop(0), pick.randint(1, 5))
            if outcome.status != "stored":
                problems.append(f"{user}: {outcome}")

    threads = [threading.Thread(target=rate, args=[user]) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    db = ledgers[0].read()
    assert problems == []
    assert [row["votes"] for row in items(ledgers[0])] == [3] * 40
    assert db.execute("SELECT count(*), count(DISTINCT key) FROM events").fetchone()[:] == (120, 120)
    assert (
        db.execute("SELECT max(n) FROM (SELECT count(*) AS n FROM votes GROUP BY item_id, user_id)").fetchone()[0] == 1
    )
    sound(db)
    for ledger in ledgers:
        ledger.close()


def test_nobody_is_asked_twice_about_an_image_and_everything_is_asked(ledger: Ledger) -> None:
    made = image_campaign(ledger, 30, votes=1)
    (user,) = people(ledger, 1)
    seen = []
    while leases := take(ledger, made, user, 7):
        for lease in leases:
            seen.append(ledger.read().execute("SELECT item_id FROM leases WHERE id = ?", [lease]).fetchone()[0])
            vote(ledger, made, user, lease, 3)
    assert sorted(seen) == [row["id"] for row in items(ledger)]


def test_a_reload_gives_the_same_leases_again(ledger: Ledger) -> None:
    made = image_campaign(ledger, 30)
    (user,) = people(ledger, 1)
    first = take(ledger, made, user, 5)
    assert take(ledger, made, user, 5) == first
    assert take(ledger, made, user, 6, tuple(first))[0] not in first


def test_an_expired_lease_goes_to_another_person_first(ledger: Ledger, clock: Clock) -> None:
    made = image_campaign(ledger, 3, votes=1)
    slow, quick = people(ledger, 2)
    held = take(ledger, made, slow, 3)
    assert take(ledger, made, quick, 3) == []
    clock.minutes(11)
    again = take(ledger, made, quick, 3)
    assert len(again) == 3
    assert min(again) > max(held), "the fence grows"
    sound(ledger.read())


def test_a_sign_of_life_keeps_a_lease(ledger: Ledger, clock: Clock) -> None:
    made = image_campaign(ledger, 1, votes=1)
    slow, quick = people(ledger, 2)
    (held,) = take(ledger, made, slow)
    for _ in range(3):
        clock.minutes(6)
        assert take(ledger, made, slow, 1, (held,)) == []
    assert take(ledger, made, quick) == []
    assert vote(ledger, made, slow, held, 4).status == "stored"


def test_a_late_vote_counts_while_there_is_a_place_and_is_kept_when_there_is_none(ledger: Ledger, clock: Clock) -> None:
    made = image_campaign(ledger, 2, votes=1)
    slow, quick = people(ledger, 2)
    first, second = take(ledger, made, slow, 2)
    clock.minutes(11)
    assert vote(ledger, made, slow, first, 4).status == "stored"
    (other,) = take(ledger, made, quick, 2)
    assert vote(ledger, made, slow, second, 5).status == "surplus"
    assert vote(ledger, made, quick, other, 2).status == "stored"
    assert [row["tier"] for row in items(ledger)] == [4, 2]
    assert ledger.read().execute("SELECT count(*) FROM events").fetchone()[0] == 3, "the surplus vote is kept"
    sound(ledger.read())


def test_an_expired_image_comes_back_to_the_one_person_there_is(ledger: Ledger, clock: Clock) -> None:
    made = image_campaign(ledger, 2)
    (user,) = people(ledger, 1)
    take(ledger, made, user, 2)
    clock.minutes(11)
    again = take(ledger, made, user, 2)
    assert len(again) == 2
    assert take(ledger, made, user, 2, tuple(again)) == []


def test_who_has_seen_everything_costs_no_search_until_something_comes_back(ledger: Ledger, clock: Clock) -> None:
    made = image_campaign(ledger, 4)
    one, other = people(ledger, 2)
    for lease in take(ledger, made, one, 4):
        vote(ledger, made, one, lease, 3)
    assert take(ledger, made, one, 4) == []
    row = ledger.read().execute("SELECT dry FROM desks").fetchone()
    assert row["dry"] >= 0
    take(ledger, made, other, 4)
    clock.minutes(11)
    assert take(ledger, made, one, 4) == []  # all of them are images that this person has rated


def test_who_has_seen_thousands_that_are_open_looks_through_each_of_them_once(ledger: Ledger) -> None:
    many = 9000
    made = image_campaign(ledger, many)
    (one,) = people(ledger, 1)
    ledger.write(lambda db: db.execute("INSERT INTO seen SELECT ?, id FROM items", [one]))
    ledger.write(lambda db: db.execute("UPDATE items SET urgent = 1 WHERE position % 2"))
    for _ in range(3):
        assert take(ledger, made, one, 9) == []
    here = ledger.read().execute("SELECT * FROM desks WHERE user_id = ?", [one]).fetchone()
    assert (here["place"] > many - queue.WINDOW, here["dry"] >= 0) == (True, True)
    ledger.write(lambda db: db.execute("DELETE FROM seen WHERE item_id = (SELECT id FROM items WHERE position = 7)"))
    assert take(ledger, made, one, 9) == [], "nothing has come back, so nothing is looked at"
    ledger.write(lambda db: db.execute("UPDATE campaigns SET reopened = reopened + 1"))
    given = {lease for _ in range(3) for lease in take(ledger, made, one, 9)}
    assert len(given) == 1


def test_what_opens_behind_everybody_is_found_by_them(ledger: Ledger, clock: Clock) -> None:
    made = image_campaign(ledger, 30, votes=1)
    one, other = people(ledger, 2)
    first = take(ledger, made, one, 5)
    for lease in take(ledger, made, other, 24):
        vote(ledger, made, other, lease, 3)
    vote(ledger, made, other, *take(ledger, made, other, 1), 3)
    assert take(ledger, made, other, 5) == []
    clock.minutes(11)
    assert len(take(ledger, made, other, 9)) == len(first)
    sound(ledger.read())


def test_a_changed_rule_is_carried_through_in_parts_and_after_a_crash(ledger: Ledger) -> None:
    images = 2 * campaign.CHUNK + 10
    made = image_campaign(ledger, images, votes=2, keep_tier=5)
    one, other = people(ledger, 2)
    for user in (one, other):
        for lease in take(ledger, made, user, 20):
            vote(ledger, made, user, lease, 4)
    parts = []
    ledger.write(lambda db: db.execute("UPDATE campaigns SET votes = 3, resettle_after = 0"))
    while (after := ledger.read().execute("SELECT resettle_after FROM campaigns").fetchone()[0]) is not None:
        parts.append(after)
        rest = ledger.write(lambda db, at=after: queue.settle_some(db, made, at, campaign.CHUNK))  # type: ignore[misc]
        ledger.write(lambda db, at=rest: db.execute("UPDATE campaigns SET resettle_after = ?", [at]))  # type: ignore[misc]
    assert parts == [0, campaign.CHUNK, 2 * campaign.CHUNK]
    wanted = ledger.read().execute("SELECT wanted, count(*) FROM items GROUP BY 1").fetchall()
    assert [row[:] for row in wanted] == [(3, images)]
    # A process that died in the middle: the next one that is started goes on from there.
    ledger.write(lambda db: db.execute("UPDATE campaigns SET votes = 2, resettle_after = ?", [campaign.CHUNK]))
    assert campaign.unsettled(ledger.read()) == [made]
    campaign.settle(ledger, made)
    assert campaign.unsettled(ledger.read()) == []
    assert items(ledger)[0]["tier"] is None, "it stands as it was before the place that had been reached"
    campaign.change(ledger, made, None, {"keep_tier": 4})
    assert items(ledger)[0]["tier"] == 4
    sound(ledger.read())


def test_more_votes_reopen_what_everybody_has_passed(ledger: Ledger) -> None:
    made = image_campaign(ledger, 10, votes=1)
    one, other = people(ledger, 2)
    for lease in take(ledger, made, one, 10):
        vote(ledger, made, one, lease, 4)
    assert take(ledger, made, other, 10) == []
    campaign.change(ledger, made, None, {"votes": 2})
    assert len(take(ledger, made, other, 10)) == 10
    sound(ledger.read())


@pytest.mark.parametrize(
    "changes",
    [{"votes": 99}, {"votes": 0}, {"extra_votes": 13}, {"keep_tier": 6}, {"gold_every": -1}, {"captions": "x"}],
)
def test_a_change_is_held_to_the_ranges_of_creation(ledger: Ledger, changes: dict[str, object]) -> None:
    made = image_campaign(ledger, 1)
    with pytest.raises(UsageError, match=next(iter(changes))):
        campaign.change(ledger, made, None, changes)


def test_an_answer_never_reaches_another_picture_over_a_restored_backup(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "ratings.sqlite"
    ledger = Ledger(path, clock)
    made = image_campaign(ledger, 40, votes=1)
    one, other = people(ledger, 2)
    ledger.backup(tmp_path / "copy")
    take(ledger, made, other, 4)
    unsent = take(ledger, made, one, 8)  # answered in a browser that could not send
    ledger.close()
    for name in ("ratings.sqlite", "ratings.sqlite-wal", "ratings.sqlite-shm"):
        path.with_name(name).unlink(missing_ok=True)
    (tmp_path / "copy").rename(path)
    ledger = Ledger(path, clock)
    anew = take(ledger, made, one, 12)  # other pictures than before
    assert not set(anew) & set(unsent)
    for lease in unsent:
        assert vote(ledger, made, one, lease, 1).status == "refused"
    assert max(unsent) < 2**53, "a number of JavaScript"
    assert ledger.read().execute("SELECT count(*) FROM events").fetchone()[0] == 0
    ledger.close()


def test_what_a_vote_says_beyond_the_rubric_is_noted_and_the_vote_kept(ledger: Ledger) -> None:
    made = image_campaign(ledger, 2)
    (user,) = people(ledger, 1)
    lease, skipped = take(ledger, made, user, 2)
    said = Action("odd", "vote", lease=lease, tier=4, flags=("watermark", "notaflag"), rubric_version=999)
    assert do(ledger, made, user, said).status == "stored"
    event = ledger.read().execute("SELECT * FROM events").fetchone()
    assert (event["tier"], event["flags"], event["rubric_version"]) == (4, "watermark", 0)
    assert json.loads(event["context"]) == {"unknown_flags": ["notaflag"], "unknown_rubric_version": 999}
    assert do(ledger, made, user, Action("mute", "skip", lease=skipped)).status == "refused"
    assert do(ledger, made, user, Action("told", "skip", lease=skipped, reason="unsure")).status == "stored"


def test_disputed_images_are_those_that_nobody_else_is_asked_about(ledger: Ledger) -> None:
    made = image_campaign(ledger, 4, votes=3)
    users = people(ledger, 3)
    said = [(1, 5, 1), (3, 3, 3), (1, 5, None), (2, 3, 4)]
    for at, user in enumerate(users):
        for lease, tiers in zip(take(ledger, made, user, 4), said, strict=True):
            if tiers[at]:
                vote(ledger, made, user, lease, tiers[at])
    assert [row["disputed"] for row in items(ledger)] == [5, 0, 0, 3], "the third one waits for its last vote"
    ledger.write(lambda db: votes.adjudicate(db, items(ledger)[0]["id"], users[0], 2, "word", 0))
    assert ledger.read().execute("SELECT disputed FROM campaigns").fetchone()[0] == 1
    sound(ledger.read())


def test_people_are_taken_off_a_campaign_and_put_on_it(ledger: Ledger) -> None:
    made = image_campaign(ledger, 3)
    one, other = people(ledger, 2)
    take(ledger, made, one, 3)
    names = [row["name"] for row in ledger.read().execute("SELECT name FROM users ORDER BY id")]
    ledger.write(lambda db: campaign.assign(db, made, [names[1]], None, 0))
    assert ledger.read().execute("SELECT count(*) FROM leases WHERE closed_ms IS NULL").fetchone()[0] == 0
    assert campaign.for_person(ledger.read(), made, one, "rater") is None
    assert campaign.for_person(ledger.read(), made, other, "rater") is not None
    assert campaign.available(ledger.read(), made) == 1
    with pytest.raises(UsageError, match="nobody else"):
        ledger.write(lambda db: campaign.assign(db, made, ["nobody else"], None, 0))
    ledger.write(lambda db: campaign.assign(db, made, [], None, 0))
    assert campaign.for_person(ledger.read(), made, one, "rater") is not None
    sound(ledger.read())


def test_the_rubric_of_a_running_campaign_changes_by_a_newer_version(ledger: Ledger) -> None:
    made = image_campaign(ledger, 1)
    now = rubric.load("kolors")
    newer = replace(now, version=2, flags=(*now.flags, rubric.Flag("grain", "r", {"en": "Grain", "zh": "噪点"})))
    ledger.write(lambda db: campaign.change_rubric(db, made, newer, None, 0))
    assert campaign.current_rubric(ledger.read(), made) == newer
    (user,) = people(ledger, 1)
    (lease,) = take(ledger, made, user)
    said = Action("new-flag", "vote", lease=lease, tier=4, flags=("grain",), rubric_version=2)
    assert do(ledger, made, user, said).status == "stored"
    event = ledger.read().execute("SELECT flags, rubric_version, context FROM events").fetchone()
    assert event[:] == ("grain", 2, "{}")
    with pytest.raises(UsageError, match="raise `version`"):
        ledger.write(lambda db: campaign.change_rubric(db, made, now, None, 0))


def test_near_duplicates_do_not_follow_each_other(ledger: Ledger) -> None:
    made = image_campaign(ledger, 60, votes=1, clusters=[1, 1, 1, 2, 2])
    (user,) = people(ledger, 1)
    order = []
    while leases := take(ledger, made, user, 3):
        for lease in leases:
            row = ledger.read().execute(
                "SELECT cluster FROM leases JOIN items ON items.id = item_id WHERE leases.id = ?", [lease]
            )
            order.append(row.fetchone()[0])
            vote(ledger, made, user, lease, 3)
    assert len(order) == 60
    for cluster in (1, 2):
        at = [n for n, c in enumerate(order) if c == cluster]
        assert min(b - a for a, b in itertools.pairwise(at)) > queue.APART - 3


def test_gold_and_repeats_come_in_between_and_do_not_count_as_votes(ledger: Ledger) -> None:
    made = image_campaign(ledger, 200, votes=1, gold=[5] * 20, gold_every=10, repeat_every=10)
    (user,) = people(ledger, 1)
    kinds = []
    while leases := take(ledger, made, user, 8):
        for lease in leases:
            kinds.append(ledger.read().execute("SELECT kind FROM leases WHERE id = ?", [lease]).fetchone()[0])
            assert vote(ledger, made, user, lease, 4).status == "stored"
    counts = Counter(kinds)
    assert counts["work"] == 200
    assert 8 <= counts["gold"] <= 20
    assert counts["repeat"] >= 8
    rhythm = [
        b - a for a, b in zip(*(lambda g: (g, g[1:]))([n for n, k in enumerate(kinds) if k == "gold"]), strict=False)
    ]
    assert len(set(rhythm)) > 3, "no rhythm that one could learn"
    row = ledger.read().execute("SELECT done, cast_votes FROM campaigns").fetchone()
    assert row[:] == (200, 200)
    sound(ledger.read())


def test_a_paused_campaign_gives_nothing_new_and_takes_what_is_on_the_screen(ledger: Ledger) -> None:
    made = image_campaign(ledger, 5)
    (user,) = people(ledger, 1)
    (held,) = take(ledger, made, user)
    ledger.write(lambda db: campaign.set_state(db, made, "paused", None, 0))
    assert take(ledger, made, user, 5, (held,)) == []
    assert vote(ledger, made, user, held, 3).status == "stored"
    ledger.write(lambda db: campaign.set_state(db, made, "running", None, 0))
    assert len(take(ledger, made, user, 4)) == 4


# votes


def test_the_same_key_again_changes_nothing(ledger: Ledger) -> None:
    made = image_campaign(ledger, 1)
    (user,) = people(ledger, 1)
    (lease,) = take(ledger, made, user)
    assert vote(ledger, made, user, lease, 4, "k").status == "stored"
    assert vote(ledger, made, user, lease, 2, "k").status == "duplicate"
    assert [row["tier"] for row in ledger.read().execute("SELECT tier FROM votes")] == [4]


def test_a_key_of_somebody_else_tells_nothing(ledger: Ledger) -> None:
    made = image_campaign(ledger, 2)
    one, other = people(ledger, 2)
    (lease,) = take(ledger, made, one)
    (mine,) = take(ledger, made, other)
    vote(ledger, made, one, lease, 4, "k")
    assert vote(ledger, made, other, mine, 2, "k").status == "refused"
    assert vote(ledger, made, other, lease, 2).status == "refused", "a lease of another person"


def test_undo_takes_back_ones_own_vote_and_leaves_a_trace(ledger: Ledger) -> None:
    made = image_campaign(ledger, 2, votes=1)
    one, other = people(ledger, 2)
    (lease,) = take(ledger, made, one)
    vote(ledger, made, one, lease, 2, "slip")
    assert items(ledger)[0]["tier"] == 2
    assert do(ledger, made, other, Action("theirs", "undo", undoes="slip")).status == "refused"
    assert do(ledger, made, one, Action("oops", "undo", undoes="slip")).status == "stored"
    assert items(ledger)[0]["tier"] is None
    assert take(ledger, made, other, 2) != [lease], "the image stays with the person who takes the vote back"
    assert vote(ledger, made, one, lease, 5, "meant").status == "stored"
    assert items(ledger)[0]["tier"] == 5
    kinds = [row["kind"] for row in ledger.read().execute("SELECT kind FROM events ORDER BY id")]
    assert kinds == ["vote", "undo", "vote"]
    assert do(ledger, made, one, Action("twice", "undo", undoes="slip")).status == "refused"
    sound(ledger.read())


def test_undo_reaches_the_last_answers_only(ledger: Ledger) -> None:
    made = image_campaign(ledger, 20, votes=1)
    (user,) = people(ledger, 1)
    for n, lease in enumerate(take(ledger, made, user, votes.UNDO_LAST + 1)):
        vote(ledger, made, user, lease, 3, f"v{n}")
    assert do(ledger, made, user, Action("u0", "undo", undoes="v0")).status == "refused"
    assert do(ledger, made, user, Action("u1", "undo", undoes="v1")).status == "stored"


def test_a_skip_goes_to_others_and_after_three_the_image_waits_for_the_lead(ledger: Ledger) -> None:
    made = image_campaign(ledger, 1, votes=1)
    users = people(ledger, 4)
    for user in users[:3]:
        (lease,) = take(ledger, made, user)
        assert do(ledger, made, user, Action(f"s{user}", "skip", lease=lease, reason="broken")).status == "stored"
        assert take(ledger, made, user) == []
    assert take(ledger, made, users[3]) == []
    assert do(ledger, made, users[2], Action("back", "undo", undoes=f"s{users[2]}")).status == "stored"
    assert len(take(ledger, made, users[2])) == 1
    sound(ledger.read())


def test_the_word_of_the_lead_stands(ledger: Ledger) -> None:
    made = image_campaign(ledger, 1, votes=2)
    one, lead = people(ledger, 2)
    (lease,) = take(ledger, made, one)
    item = items(ledger)[0]["id"]
    ledger.write(lambda db: votes.adjudicate(db, item, lead, 2, "word", 0))
    assert vote(ledger, made, one, lease, 5).status == "stored"
    row = items(ledger)[0]
    assert (row["tier"], row["rule"], row["votes"]) == (2, "adjudicated", 1)
    assert take(ledger, made, lead) == []
    sound(ledger.read())


def test_votes_keep_line_and_gold_change_while_a_campaign_runs(ledger: Ledger) -> None:
    made = image_campaign(ledger, 3, votes=1)
    users = people(ledger, 3)
    for lease in take(ledger, made, users[0], 2):
        vote(ledger, made, users[0], lease, 5)
    campaign.change(ledger, made, None, {"votes": 2})
    assert [row["tier"] for row in items(ledger)] == [None, None, None]
    for lease in take(ledger, made, users[1], 3):
        vote(ledger, made, users[1], lease, 5)
    assert [row["tier"] for row in items(ledger)] == [5, 5, None]
    gold = items(ledger)[2]["id"]
    ledger.write(lambda db: campaign.mark(db, gold, gold=4, exemplar=None, by=None, now=0))
    row = ledger.read().execute("SELECT images, done FROM campaigns").fetchone()
    assert row[:] == (2, 2)
    with pytest.raises(UsageError, match="cannot be changed"):
        campaign.change(ledger, made, None, {"name": "x"})


def test_events_cannot_be_changed_or_removed(ledger: Ledger) -> None:
    made = image_campaign(ledger, 1)
    (user,) = people(ledger, 1)
    vote(ledger, made, user, take(ledger, made, user)[0], 3)
    for statement in ("UPDATE events SET tier = 5", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            ledger.write(lambda db, statement=statement: db.execute(statement))  # type: ignore[misc]


class AnyOrder(RuleBasedStateMachine):
    """Whatever people do in whatever order, with a clock that jumps: the invariants hold and the vote is the vote."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.ledger = Ledger(Path(self.folder.name) / "ratings.sqlite", self.clock)
        self.made = image_campaign(self.ledger, 4, votes=2, extra=1, gold=[3], gold_every=3, repeat_every=4)
        self.users = people(self.ledger, 4)
        self.leases: list[tuple[int, int]] = []
        self.said: list[tuple[int, str]] = []

    @rule(who=st.integers(0, 3), want=st.integers(1, 3))
    def ask(self, who: int, want: int) -> None:
        user = self.users[who]
        self.leases += [(user, lease) for lease in take(self.ledger, self.made, user, want)]

    @rule(which=st.integers(0, 30), tier=st.integers(1, 5), skip=st.booleans())
    def answer(self, which: int, tier: int, skip: bool) -> None:
        if self.leases:
            user, lease = self.leases[which % len(self.leases)]
            key = f"{len(self.said)}"
            kind = "skip" if skip and tier == 1 else "vote"
            do(self.ledger, self.made, user, Action(key, kind, lease=lease, tier=tier))  # type: ignore[arg-type]
            self.said.append((user, key))

    @rule(which=st.integers(0, 30))
    def undo(self, which: int) -> None:
        if self.said:
            user, key = self.said[which % len(self.said)]
            mine = f"u{len(self.said)}"
            do(self.ledger, self.made, user, Action(mine, "undo", undoes=key))
            self.said.append((user, mine))

    @rule(minutes=st.sampled_from([1, 6, 11]))
    def wait(self, minutes: int) -> None:
        self.clock.minutes(minutes)

    @invariant()
    def holds(self) -> None:
        db = self.ledger.read()
        sound(db)
        for row in db.execute("SELECT id, tier, rule FROM items WHERE gold_tier IS NULL").fetchall():
            tiers = [
                r[0] for r in db.execute("SELECT tier FROM votes WHERE item_id = ? AND part = 'work'", [row["id"]])
            ]
            assert row["tier"] == decide(tiers, VoteRule(2, 1, 5)).tier

    def teardown(self) -> None:
        self.ledger.close()
        self.folder.cleanup()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


# the vote


@pytest.mark.parametrize(
    ("cast", "tier", "rule_", "wanted"),
    [
        ([5, 5], None, None, 3),
        ([5, 5, 5], 5, "majority", 3),
        ([2, 4, 2], 2, "majority", 3),
        ([2, 3, 4], None, None, 4),  # three different votes: a fourth
        ([2, 3, 4, 4], 4, "majority", 4),
        ([1, 2, 4, 5], 2, "median", 4),  # and then the median, the lower one
        ([5, 5, 4], None, None, 4),  # one vote more could take it below the line
        ([5, 5, 4, 4], 4, "median", 4),
        ([5, 5, 4, 5], 5, "majority", 4),
        ([4, 4, 5], 4, "majority", 3),  # no vote could lift it over the line: a draw does not promote
    ],
)
def test_the_vote_and_its_tie_rule(cast: list[int], tier: int | None, rule_: str | None, wanted: int) -> None:
    decision = decide(cast, VoteRule(3, 1, 5))
    assert (decision.tier, decision.rule, decision.wanted) == (tier, rule_, wanted)


# the file


def test_what_was_acknowledged_outlives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "ratings.sqlite"
    with_people = Ledger(path)
    made = image_campaign(with_people, 5000, votes=1)
    (user,) = people(with_people, 1)
    with_people.close()
    code = (
        "import sys; from pathlib import Path; from curate.rate import queue, votes; "
        "from curate.rate.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1])); c, u = int(sys.argv[2]), int(sys.argv[3]); n = 0\n"
        "while True:\n"
        "    for t in ledger.write(lambda db: queue.lease(db, c, u, 9, [], 0)):\n"
        "        n += 1\n"
        "        ledger.write(lambda db: votes.apply(db, c, u, votes.Action(f'k{n}', 'vote', "
        "lease=t.lease, tier=4), 0))\n"
        "        print(f'k{n}', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path), str(made), str(user)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(150)]
    process.send_signal(signal.SIGKILL)
    acknowledged += process.stdout.read().split()
    process.stdout.close()
    process.wait()
    after = Ledger(path)
    stored = {row["key"] for row in after.read().execute("SELECT key FROM events")}
    assert set(acknowledged) <= stored
    assert len(stored) <= len(acknowledged) + 1
    assert after.read().execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    sound(after.read())
    after.close()


def test_a_change_that_fails_takes_only_itself_back(ledger: Ledger) -> None:
    people(ledger, 1)

    def bad(db: sqlite3.Connection) -> None:
        db.execute("UPDATE users SET name = 'gone'")
        raise ValueError("no")

    futures = [ledger.submit(bad), ledger.submit(lambda db: db.execute("UPDATE users SET role = 'lead'").rowcount)]
    with pytest.raises(ValueError, match="no"):
        futures[0].result()
    assert futures[1].result() == 1
    row = ledger.read().execute("SELECT name, role FROM users").fetchone()
    assert row[:] == ("rater 0", "lead")


def test_a_backup_is_whole_and_never_overwrites(ledger: Ledger, tmp_path: Path) -> None:
    made = image_campaign(ledger, 3)
    (user,) = people(ledger, 1)
    vote(ledger, made, user, take(ledger, made, user)[0], 3)
    target = tmp_path / "copy.sqlite"
    ledger.backup(target)
    copy = Ledger(target)
    assert copy.read().execute("SELECT count(*) FROM events").fetchone()[0] == 1
    copy.close()
    with pytest.raises(UsageError, match="already there"):
        ledger.backup(target)


def test_the_ledger_and_its_secret_are_for_their_owner_only(ledger: Ledger) -> None:
    secret = ledger.secret
    assert len(secret) == 32
    assert secret == ledger.secret
    assert secret != bytes(32)
    for name in ("ratings.sqlite", "ratings.secret"):
        assert ledger.path.with_name(name).stat().st_mode & 0o077 == 0


def test_a_ledger_of_the_first_layout_is_brought_up_to_date(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "ratings.sqlite"
    db = sqlite3.connect(path)
    db.executescript((Path(__file__).parent / "data" / "ratings-layout-1.sql").read_text("utf-8"))
    db.close()
    ledger = Ledger(path, clock)
    for made in campaign.unsettled(ledger.read()):  # as the server does when it starts
        campaign.settle(ledger, made)
    row = ledger.read().execute("SELECT done, cast_votes, tier2, tier4, disputed FROM campaigns").fetchone()
    assert row[:] == (1, 3, 1, 0, 1)
    sound(ledger.read())
    assert len(take(ledger, 1, 2, 9)) == 2
    assert sorted(table_names(ledger.read())) == sorted(table_names(Ledger(tmp_path / "new.sqlite").read()))
    ledger.close()


def table_names(db: sqlite3.Connection) -> list[str]:
    """Tables, indexes and triggers, with the columns of tables."""
    found = [row["name"] for row in db.execute("SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'")]
    columns = [f"{name}.{row['name']}" for name in found for row in db.execute(f"PRAGMA table_info({name})")]
    return found + columns


def test_a_ledger_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ratings.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="layout 99"):
        Ledger(path)
