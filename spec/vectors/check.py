"""Runs the vectors of spec/records.md with the Python standard library alone.

    python3 spec/vectors/check.py

It shares no code with the Go implementation, so the two check each other; it is also
the shortest complete reader of the formats. It is slow and not constant-time: it
verifies, it must not sign.
"""

import base64
import hashlib
import json
import os
import re
import sys

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
I = pow(2, (P - 1) // 4, P)
SMALL_Y = [
    0,
    1,
    P - 1,
    int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"),
    int.from_bytes(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"),
]
NUMERALS = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


class Bad(Exception):
    """Its text is the reason code."""


def need(ok, reason):
    if not ok:
        raise Bad(reason)


# Ed25519, RFC 8032 §5.1 and §6, without cofactor.


def point_add(p, q):
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def point_mul(s, p):
    q = (0, 1, 1, 0)
    while s:
        if s & 1:
            q = point_add(q, p)
        p = point_add(p, p)
        s >>= 1
    return q


def point_decode(b):
    y = int.from_bytes(b, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    x2 = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(x2, (P + 3) // 8, P)
    if (x * x - x2) % P:
        x = x * I % P
    if (x * x - x2) % P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


def point_encode(p):
    z = pow(p[2], P - 2, P)
    return ((p[1] * z % P) | (p[0] * z % P & 1) << 255).to_bytes(32, "little")


BASE = point_decode((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def ed25519_public(seed):
    a = int.from_bytes(hashlib.sha512(seed).digest()[:32], "little") & (2**254 - 8) | 2**254
    return point_encode(point_mul(a, BASE))


def key_ok(pub):
    y = int.from_bytes(pub, "little") & (2**255 - 1)
    return len(pub) == 32 and y < P and y not in SMALL_Y


def ed25519_verify(pub, msg, sig):
    if len(sig) != 64 or not key_ok(pub):
        return False
    a, s = point_decode(pub), int.from_bytes(sig[32:], "little")
    if a is None or s >= L:
        return False
    k = int.from_bytes(hashlib.sha512(sig[:32] + pub + msg).digest(), "little") % L
    minus_a = (P - a[0], a[1], 1, P - a[3])
    return point_encode(point_add(point_mul(s, BASE), point_mul(k, minus_a))) == sig[:32]


# §1 identifiers


def b58encode(b):
    n, s = int.from_bytes(b, "big"), ""
    while n:
        n, r = divmod(n, 58)
        s = NUMERALS[r] + s
    return "1" * (len(b) - len(b.lstrip(b"\0"))) + s


def b58decode(s):
    n = 0
    for c in s:
        need(c in NUMERALS, "base58")
        n = n * 58 + NUMERALS.index(c)
    return bytes(len(s) - len(s.lstrip("1"))) + n.to_bytes((n.bit_length() + 7) // 8, "big")


def key_of(value, text_prefix, prefix):
    if not value.startswith(text_prefix):
        return None
    try:
        raw = b58decode(value[len(text_prefix) :])
    except Bad:
        return None
    pub = raw[len(prefix) :]
    ok = raw.startswith(prefix) and key_ok(pub) and b58encode(raw) == value[len(text_prefix) :]
    return pub if ok else None


def did_key(did):
    return key_of(did, "did:key:z", b"\xed\x01")


def peer_key(peer_id):
    return key_of(peer_id, "", bytes.fromhex("002408011220"))


def did_of(pub):
    return "did:key:z" + b58encode(b"\xed\x01" + pub)


# §2 signatures, §3 hash tree


def signing_input(domain, network, msg):
    d, n = domain.encode(), network.encode()
    return b"shoal-signature-v1\n" + bytes([len(d)]) + d + bytes([len(n)]) + n + msg


def verify(pub, domain, network, msg, sig):
    return ed25519_verify(pub, signing_input(domain, network, msg), sig)


def sha256(b):
    return hashlib.sha256(b).digest()


def tree_root(leaves):
    """RFC 6962 §2.1 as it is written there, from the top down."""
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return sha256(b"\1" + tree_root(leaves[:k]) + tree_root(leaves[k:]))


def tree_proof(leaves, i):
    if len(leaves) == 1:
        return []
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if i < k:
        return tree_proof(leaves[:k], i) + [tree_root(leaves[k:])]
    return tree_proof(leaves[k:], i - k) + [tree_root(leaves[:k])]


# protobuf, as much of it as records and headers use


def varint(b, i):
    n = shift = 0
    while True:
        need(i < len(b) and shift < 70, "bad_record")
        n |= (b[i] & 0x7F) << shift
        shift, i = shift + 7, i + 1
        if b[i - 1] < 0x80:
            return n, i


def fields(b):
    i, out = 0, {}
    while i < len(b):
        tag, i = varint(b, i)
        if tag & 7 == 0:
            out[tag >> 3], i = varint(b, i)
            continue
        need(tag & 7 in (1, 2) and tag >> 3, "bad_record")
        n, i = varint(b, i) if tag & 7 == 2 else (8, i)
        need(i + n <= len(b), "bad_record")
        out[tag >> 3], i = b[i : i + n], i + n
    return out


def signed64(n):
    return n - 2**64 if n >= 2**63 else n


# §6 records


def encode_bytes(tag, b):
    head, n = bytes([tag]), len(b)
    while n >= 0x80:
        head, n = head + bytes([n & 0x7F | 0x80]), n >> 7
    return head + bytes([n]) + b


def open_record(network, raw, now):
    need(len(raw) <= 9216, "bad_record")
    outer = fields(raw)
    body, sig = outer.get(1, b""), outer.get(2, b"")
    need(isinstance(body, bytes) and isinstance(sig, bytes), "bad_record")
    need(raw == encode_bytes(0x0A, body) + encode_bytes(0x12, sig), "bad_record")
    f = fields(body)
    kind, owner, value = f.get(3, b"").decode(), f.get(4, b""), f.get(8, b"")
    begin, end = signed64(f.get(6, 0)), signed64(f.get(7, 0))
    need(f.get(1) == 1 and re.fullmatch("[a-z0-9-]{1,32}", kind) and key_ok(owner), "bad_record")
    need(len(value) <= 8192 and 0 <= begin < end <= begin + 366 * 86400_000, "bad_record")
    need(f.get(2, b"") == network.encode(), "wrong_network")
    need(verify(owner, "shoal/record/v1", network, body, sig), "bad_signature")
    need(begin - 120_000 <= now, "not_yet_valid")
    need(now <= end + 120_000, "expired")
    return {"kind": kind, "owner": did_of(owner), "seq": f.get(5, 0), "not_before_ms": begin, "not_after_ms": end, "value": value.hex()}


# §7 cards


def unique(pairs):
    names = [name.lower() for name, _ in pairs]
    need(len(set(names)) == len(names) <= 256, "json")
    return dict(pairs)


def integer(s):
    need(abs(int(s)) < 2**53, "json")
    return int(s)


def real(s):
    need(abs(float(s)) != float("inf"), "json")
    return float(s)


def depth(v):
    inner = v.values() if isinstance(v, dict) else v if isinstance(v, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


def constant(_):
    raise Bad("json")


def strict(text):
    try:
        v = json.loads(text, object_pairs_hook=unique, parse_int=integer, parse_float=real, parse_constant=constant)
        json.dumps(v, ensure_ascii=False).encode()  # half a surrogate pair has no UTF-8
    except ValueError:
        raise Bad("json") from None
    need(isinstance(v, dict) and depth(v) <= 32, "json")
    return v


def jcs(v):
    """RFC 8785 for what the vectors hold: no number needs an exponent."""
    if isinstance(v, dict):
        items = sorted(v.items(), key=lambda kv: kv[0].encode("utf-16-be"))
        return "{" + ",".join(jcs(k) + ":" + jcs(x) for k, x in items) + "}"
    if isinstance(v, list):
        return "[" + ",".join(map(jcs, v)) + "]"
    if isinstance(v, float):
        return repr(int(v)) if v == int(v) else repr(v)
    return json.dumps(v, ensure_ascii=False)


def b64(s):
    need(isinstance(s, str) and re.fullmatch("[A-Za-z0-9_-]*", s), "base64")
    try:
        raw = base64.urlsafe_b64decode(s + "=" * (-len(s) % 4))
    except ValueError:
        raise Bad("base64") from None
    need(b64encode(raw) == s, "base64")
    return raw


def b64encode(b):
    return base64.urlsafe_b64encode(b).rstrip(b"=").decode()


def own_signature(card):
    listed = card.get("signatures")
    need(isinstance(listed, list) and 1 <= len(listed) <= 4, "bad_card")
    own = []
    for s in listed:
        need(isinstance(s, dict) and {"protected", "signature"} <= set(s) <= {"protected", "signature", "header"}, "bad_card")
        head = strict(b64(s["protected"]).decode())
        b64(s["signature"])
        if str(head.get("kid")).startswith("did:key:"):
            own.append((s, head))
    need(len(own) == 1, "bad_card")
    s, head = own[0]
    need(head.get("alg") == "EdDSA" and head.get("typ") == "JOSE" and "crit" not in head, "bad_card")
    return s, head["kid"]


def verify_card(text):
    need(len(text.encode()) <= 8192, "bad_card")
    try:
        card = strict(text)
        s, did = own_signature(card)
        sig = b64(s["signature"])
    except Bad:
        raise Bad("bad_card") from None
    pub = did_key(did)
    need(pub, "bad_card")
    payload = jcs({k: v for k, v in card.items() if k != "signatures"})
    need(ed25519_verify(pub, (s["protected"] + "." + b64encode(payload.encode())).encode(), sig), "bad_signature")
    need(None not in card.get("supportedInterfaces", []), "bad_card")
    return did, payload


# §8 rotation and revocation

ROTATION, REVOCATION = "shoal/rotation/v1", "shoal/revocation/v1"


def apply_statement(state, text, now):
    try:
        s = strict(text)
        sigs = {m: b64(s[m]) for m in ("signature", "proof") if m in s}
    except Bad:
        raise Bad("bad_statement") from None
    msg = jcs({k: v for k, v in s.items() if k not in ("signature", "proof")}).encode()
    own = {ROTATION: {"old", "new"}, REVOCATION: {"key", "reason"}}.get(s.get("type"))
    need(own, "bad_statement")
    wanted = own | {"root", "seq", "prev", "at_ms"}
    need(wanted <= set(s) and not set(s) & ({"old", "new", "key", "reason"} - own), "bad_statement")
    need(all(isinstance(s[m], int if m in ("seq", "at_ms") else str) for m in wanted), "bad_statement")
    need(set(sigs) == ({"signature", "proof"} if s["type"] == ROTATION else {"signature"}), "bad_statement")
    keys, prev = state["keys"], b64encode(state["head"])
    need(not state["revoked"] and s["root"] == keys[0] and s["seq"] == state["seq"] + 1, "bad_statement")
    need(s["prev"] == prev and state["at"] <= s["at_ms"] <= now + 120_000, "bad_statement")
    if s["type"] == ROTATION:
        need(s["old"] == keys[-1] and s["new"] not in keys and did_key(s["new"]), "bad_statement")
        need(verify(did_key(s["old"]), s["type"], "", msg, sigs["signature"]), "bad_signature")
        need(verify(did_key(s["new"]), s["type"], "", msg, sigs["proof"]), "bad_signature")
        return {"keys": keys + [s["new"]], "seq": s["seq"], "head": sha256(msg), "at": s["at_ms"], "revoked": False, "reason": ""}
    need(s["key"] == keys[-1] and re.fullmatch("[a-z_]{1,32}", s["reason"]), "bad_statement")
    need(verify(did_key(s["key"]), s["type"], "", msg, sigs["signature"]), "bad_signature")
    return {"keys": keys, "seq": s["seq"], "head": sha256(msg), "at": s["at_ms"], "revoked": True, "reason": s["reason"]}


def verify_chain(root, statements, now):
    state = {"keys": [root], "seq": 0, "head": b"", "at": 0, "revoked": False, "reason": ""}
    for text in statements:
        state = apply_statement(state, text, now)
    return state


# the files

checks = 0


def same(name, got, want):
    global checks
    checks += 1
    if got != want:
        sys.exit(f"{name}: got {got!r}, want {want!r}")


def outcome(f, *args):
    try:
        return f(*args), ""
    except Bad as e:
        return None, str(e)


def run_identity(v):
    for k in v["keys"]:
        pub = ed25519_public(bytes.fromhex(k["seed"]))
        same("public key", pub.hex(), k["public"])
        same("DID", did_of(pub), k["did"])
        same("peer id", b58encode(bytes.fromhex("002408011220") + pub), k["peer_id"])
        same("keys of " + k["did"], (did_key(k["did"]), peer_key(k["peer_id"])), (pub, pub))
    for b in v["bad_keys"]:
        same("key " + b["name"], key_ok(bytes.fromhex(b["value"])), False)
    for b in v["bad_dids"]:
        same("DID " + b["name"], did_key(b["value"]), None)
    for b in v["bad_peer_ids"]:
        same("peer id " + b["name"], peer_key(b["value"]), None)
    for c in v["cards"]:
        got, error = outcome(verify_card, c["card"])
        same("card " + c["name"], error, c.get("error", ""))
        if not error:
            same("card " + c["name"], got, (c["did"], c["payload"]))
    for c in v["chains"]:
        got, error = outcome(verify_chain, c["root"], c["statements"], c["now_ms"])
        same("chain " + c["name"], error, c.get("error", ""))
        if not error:
            current = "" if got["revoked"] else got["keys"][-1]
            head = (got["head"] or bytes(32)).hex()
            same("chain " + c["name"], (current, got["reason"], head), (c.get("current", ""), c.get("reason", ""), c["head"]))


def run_records(v):
    unhex = bytes.fromhex
    for s in v["signatures"]:
        pub, msg, sig = unhex(s["public"]), unhex(s["message"]), unhex(s["signature"])
        same("signature " + s["name"], verify(pub, s["domain"], s["network"], msg, sig), s["ok"])
        if s["ok"]:
            same("input " + s["name"], signing_input(s["domain"], s["network"], msg).hex(), s["input"])
    for t in v["trees"]:
        leaves = [sha256(b"\0" + unhex(d)) for d in t["data"]]
        same("leaves", [x.hex() for x in leaves], t["leaves"])
        same(f"root of {len(leaves)}", tree_root(leaves).hex(), t["root"])
        for i, proof in enumerate(t["proofs"]):
            same(f"proof {i} of {len(leaves)}", [x.hex() for x in tree_proof(leaves, i)], proof)
    for e in v["envelopes"]:
        root = tree_root([sha256(b"\0" + unhex(h)) for h in e["headers"]])
        same("envelopes " + e["name"], root.hex(), e["root"])
        same("envelopes " + e["name"], verify(did_key(e["from"]), "shoal/envelope/v1", e["network"], root, unhex(e["signature"])), True)
        for h, b in zip(e["headers"], e["bodies"]):
            same("body", fields(unhex(h))[13], sha256(unhex(b)))
    for r in v["receipts"]:
        for who in ("doer", "asker"):
            ok = verify(did_key(r[who]), "shoal/receipt/v1", r["network"], unhex(r["body"]), unhex(r[who + "_signature"]))
            same(f"receipt {r['name']} {who}", ok, True)
    for r in v["records"]:
        got, error = outcome(open_record, r["network"], unhex(r["record"]), r["now_ms"])
        same("record " + r["name"], error, r.get("error", ""))
        if not error:
            same("record " + r["name"], got, {k: r.get(k, "") for k in got})


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    for name, run in (("identity.json", run_identity), ("records.json", run_records)):
        with open(os.path.join(here, name), encoding="utf-8") as f:
            run(json.load(f))
    print(f"{checks} checks passed")


main()
