"""Runs the vectors of spec/card.md with the Python standard library and check.py alone.

    python3 spec/vectors/check_card.py
"""

import datetime
import json
import os
import re

HERE = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(HERE, "check.py"), encoding="utf-8") as f:
    exec(f.read().rsplit("main()", 1)[0])  # its functions, without its run

EXTENSION = "https://github.com/shoalmesh/shoal/spec/card/v1"
BINDING = "https://github.com/shoalmesh/shoal/spec/binding/libp2p/v1"
TOLERANCE = datetime.timedelta(minutes=2)
DAY = datetime.timedelta(hours=24)


def moment(p, name):
    need(isinstance(p.get(name), str), "bad_card")
    try:
        t = datetime.datetime.fromisoformat(p[name].replace("Z", "+00:00"))
    except ValueError:
        raise Bad("bad_card")
    need(t.tzinfo is not None, "bad_card")
    return t


def params(card):
    ours = [e for e in card["capabilities"].get("extensions", []) if e.get("uri") == EXTENSION]
    need(len(ours) == 1, "bad_card")
    p = ours[0].get("params", {})
    seq = p.get("seq")
    need(type(seq) is int and 1 <= seq <= 2**53 - 1, "bad_card")
    need(isinstance(p.get("network"), str) and isinstance(p.get("node"), str), "bad_card")
    need(type(p.get("withdrawn", False)) is bool and isinstance(p.get("skills", {}), dict), "bad_card")
    need(peer_key(p["node"]), "bad_card")
    start, end = moment(p, "not_before"), moment(p, "not_after")
    need(start < end <= start + DAY, "bad_card")
    need(not (p.get("withdrawn") and card["skills"]), "bad_card")
    ids = [s["id"] for s in card["skills"]]
    need(len(ids) <= 64 and len(set(ids)) == len(ids), "bad_card")
    need(all(re.fullmatch("[a-z0-9][a-z0-9._-]{0,63}", i) for i in ids), "bad_card")
    need(1 <= len(card["name"].encode()) <= 64 and card["name"].isprintable(), "bad_card")
    links = [i for i in card["supportedInterfaces"] or [] if i["protocolBinding"] == BINDING]
    need(len(links) == 1 and links[0]["url"] == "libp2p:/p2p/" + p["node"], "bad_card")
    return p, start, end


def accept(text, v, newest):
    need(len(text.encode()) <= 8192, "bad_card")
    verify_card(text)
    card = strict(text)
    p, start, end = params(card)
    need(p["network"] == v["network"], "card_wrong_network")
    now = datetime.datetime.fromisoformat(v["now"].replace("Z", "+00:00"))
    need(now >= start - TOLERANCE, "card_not_yet_valid")
    need(now <= end + TOLERANCE, "card_expired")
    need(own_signature(card)[1] == v["agent"], "card_wrong_agent")
    if newest is not None:
        need(p["seq"] >= newest[0], "card_stale")
        need(p["seq"] > newest[0] or text == newest[1], "card_conflict")
    return p["seq"], text


def run(v):
    newest = accept(v["control"], v, None)
    reasons = {}
    for c in v["cards"]:
        try:
            accept(c["card"], v, newest)
            got = ""
        except Bad as e:
            got = str(e)
        except RecursionError:  # Python's own limit on depth
            got = "bad_card"
        reasons[got] = reasons.get(got, 0) + 1
        if got != c["reason"]:
            raise SystemExit(f"{c['name']}: got {got!r}, want {c['reason']!r}")
    print(f"{len(v['cards'])} cards by reason: {dict(sorted(reasons.items()))}")


with open(os.path.join(HERE, "card.json"), encoding="utf-8") as f:
    run(json.load(f))
