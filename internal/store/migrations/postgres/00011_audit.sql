-- Who did what: rows are only added, each with the hash of the one before. Package audit has the form. What is at or before base was pruned.
CREATE TABLE audit (
    seq        bigint PRIMARY KEY,
    at         bigint NOT NULL,
    actor      text COLLATE "C" NOT NULL,
    token_id   text COLLATE "C" NOT NULL,
    role       text   NOT NULL,
    remote     text   NOT NULL,
    action     text COLLATE "C" NOT NULL,
    object     text COLLATE "C" NOT NULL,
    outcome    text   NOT NULL,
    detail     text   NOT NULL, -- JSON, empty for none
    request_id text   NOT NULL,
    hash       text   NOT NULL
);
CREATE INDEX audit_at ON audit (at);

ALTER TABLE state ADD COLUMN audit_seq bigint NOT NULL DEFAULT 0; -- the newest row's
ALTER TABLE state ADD COLUMN audit_hash text NOT NULL DEFAULT '0000000000000000000000000000000000000000000000000000000000000000';
ALTER TABLE state ADD COLUMN audit_base bigint NOT NULL DEFAULT 0; -- the last row that was pruned
ALTER TABLE state ADD COLUMN audit_base_hash text NOT NULL DEFAULT '0000000000000000000000000000000000000000000000000000000000000000';
