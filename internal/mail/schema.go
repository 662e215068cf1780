package mail

import "github.com/shoalmesh/shoal/internal/store"

// Schema returns the tables of package mail.
//
// An outgoing flow's next sequence number is max(acked, highest seq in the outbox) + 1:
// acked is written in the transaction that deletes the rows, so posting writes one row
// and no counter. A flow of a restored database gets a new row with the new epoch; rows
// of the old epoch keep their old numbers, so their receiver still knows them.
func Schema() store.Schema {
	return store.Schema{Package: "mail", Steps: []string{schema1}}
}

const schema1 = `
CREATE TABLE mail_flow (
	id        INTEGER PRIMARY KEY,
	recipient BLOB NOT NULL, -- 32 bytes
	sender    BLOB NOT NULL, -- 32 bytes
	topic     TEXT NOT NULL,
	epoch     INTEGER NOT NULL, -- uint64 as int64
	acked     INTEGER NOT NULL DEFAULT 0,
	UNIQUE (recipient, sender, topic, epoch)
) STRICT;

-- body NULL: a skip. It is sent as one, and its expires_ms is the largest integer.
CREATE TABLE mail_outbox (
	id         INTEGER PRIMARY KEY,
	flow       INTEGER NOT NULL,
	seq        INTEGER NOT NULL,
	expires_ms INTEGER NOT NULL,
	created_ms INTEGER NOT NULL,
	envelope   BLOB NOT NULL, -- UUIDv7
	body       BLOB
) STRICT;
-- expires_ms is in the index so that looking for expired rows reads no bodies.
CREATE INDEX mail_outbox_flow ON mail_outbox (flow, seq, expires_ms);

CREATE TABLE mail_inflow (
	id         INTEGER PRIMARY KEY,
	recipient  BLOB NOT NULL,
	sender     BLOB NOT NULL,
	topic      TEXT NOT NULL,
	epoch      INTEGER NOT NULL,
	have       INTEGER NOT NULL,
	touched_ms INTEGER NOT NULL,
	UNIQUE (recipient, sender, topic)
) STRICT;

-- What was refused is told again when its sender asks again, until it knows.
CREATE TABLE mail_refused (
	inflow INTEGER NOT NULL,
	epoch  INTEGER NOT NULL,
	seq    INTEGER NOT NULL,
	reason TEXT NOT NULL,
	PRIMARY KEY (inflow, epoch, seq)
) STRICT, WITHOUT ROWID;

-- One row an agent with letters; acked is the highest cursor that was ever removed, so
-- that cursors only grow although the table is emptied.
CREATE TABLE mail_box (
	id        INTEGER PRIMARY KEY,
	recipient BLOB NOT NULL UNIQUE,
	acked     INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE mail_letter (
	id          INTEGER PRIMARY KEY,
	box         INTEGER NOT NULL,
	sender      BLOB NOT NULL,
	envelope    BLOB NOT NULL,
	created_ms  INTEGER NOT NULL,
	received_ms INTEGER NOT NULL,
	body        BLOB NOT NULL
) STRICT;
CREATE INDEX mail_letter_box ON mail_letter (box);

CREATE TABLE mail_dead (
	id         INTEGER PRIMARY KEY AUTOINCREMENT,
	envelope   BLOB NOT NULL,
	sender     BLOB NOT NULL,
	recipient  BLOB NOT NULL,
	topic      TEXT NOT NULL,
	seq        INTEGER NOT NULL,
	created_ms INTEGER NOT NULL,
	expires_ms INTEGER NOT NULL,
	died_ms    INTEGER NOT NULL,
	reason     TEXT NOT NULL,
	body       BLOB NOT NULL
) STRICT;
`
