# SPDX-License-Identifier: GPL-2.0-or-later
"""The format of a recording: one SQLite file, ``run.sqlite``, in a folder of its own.

The tables hold what was recorded, row by row, and nothing derived. The views say what it comes to:
they are part of the file, so that ``sqlite3 run.sqlite 'SELECT * FROM hot LIMIT 20'`` works without
Ring1. docs/recording.md describes each column. Addresses are stored as SQLite has integers, signed
64-bit: ``printf('%016x', gva)`` shows them as they are meant.
"""

from __future__ import annotations

import struct

#: Of the whole format. A reader refuses a file with another number.
VERSION = 1
FILE_NAME = "run.sqlite"

#: One entry of the core's log (bt/core/record.pxi, LogEntry): virtual ns, GVA, GPA, offset in the
#: heap, size, region, kind, virtual CPL, bits, row.
LOG_ENTRY = struct.Struct("<QqqQHHBBBB")

BLOCK, AGAIN, SITE, STUB, UNSTUB, CODE, DATA = range(1, 8)

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE kinds (kind INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE reasons (reason INTEGER PRIMARY KEY, name TEXT, unit TEXT);
CREATE TABLE log (
    id INTEGER PRIMARY KEY, ns INTEGER, kind INTEGER, gva INTEGER, gpa INTEGER, cpl INTEGER,
    bits INTEGER, row INTEGER, region INTEGER, code BLOB);
CREATE TABLE exits (gva INTEGER, reason INTEGER, count INTEGER, ns INTEGER,
    PRIMARY KEY (gva, reason)) WITHOUT ROWID;
CREATE TABLE timeline (ns INTEGER, reason TEXT, count INTEGER,
    PRIMARY KEY (ns, reason)) WITHOUT ROWID;
CREATE TABLE symbols (address INTEGER PRIMARY KEY, size INTEGER, name TEXT);
"""

VIEWS = f"""
CREATE VIEW blocks AS
    SELECT gva, bits, cpl, code, min(gpa) AS gpa, length(code) AS size, min(ns) AS first_ns,
           max(ns) AS last_ns, count(*) AS times
    FROM log WHERE kind = {BLOCK} GROUP BY gva, bits, cpl, code;
CREATE VIEW sites AS
    SELECT s.gva, s.bits, s.row, s.code, s.first_ns, s.made,
           (SELECT count(*) FROM log WHERE kind = {STUB} AND gva = s.gva) AS stubs,
           (SELECT count(*) FROM log WHERE kind = {UNSTUB} AND gva = s.gva) AS taken_back
    FROM (SELECT gva, bits, row, code, min(ns) AS first_ns, count(*) AS made
          FROM log WHERE kind = {SITE} GROUP BY gva, bits, row, code) AS s;
CREATE VIEW hot AS
    SELECT printf('%016x', e.gva) AS address, r.name AS reason, e.count, e.ns
    FROM exits AS e JOIN reasons AS r USING (reason) ORDER BY e.count DESC;
CREATE VIEW pages AS
    SELECT gpa >> 12 AS gpn, sum(kind = {CODE}) AS became_code, sum(kind = {DATA}) AS written,
           min(ns) AS first_ns, max(ns) AS last_ns
    FROM log WHERE kind IN ({CODE}, {DATA}) GROUP BY gpa >> 12;
"""

#: For the readers' questions; made when the run is over.
INDEXES = (f"CREATE INDEX stubs ON log (gva) WHERE kind = {STUB};",
           f"CREATE INDEX taken_back ON log (gva) WHERE kind = {UNSTUB};")

KIND_NAMES = {
    BLOCK: "block translated", AGAIN: "block translated again", SITE: "trap put in place",
    STUB: "stub installed", UNSTUB: "stub taken back", CODE: "page became code",
    DATA: "code page written",
}
