ALTER TABLE state ADD COLUMN lists bigint NOT NULL DEFAULT 0; -- revision of the last change to an active list

CREATE TABLE lists (
    id         bigint NOT NULL PRIMARY KEY,
    name       text COLLATE "C" NOT NULL,
    type       text   NOT NULL,
    ttl        bigint NOT NULL, -- microseconds, 0: without end
    max_ttl    bigint NOT NULL, -- microseconds, 0: any
    refresh    text   NOT NULL,
    capacity   bigint NOT NULL,
    comment    bytea  NOT NULL,
    subdomains bigint NOT NULL,
    hit_syslog bigint NOT NULL,
    hit_every  bigint NOT NULL, -- microseconds
    source     text   NOT NULL,
    created_by text   NOT NULL,
    created_at bigint NOT NULL,
    deleted_at bigint NOT NULL, -- the row stays until the sweep has taken its entries
    entries    bigint NOT NULL, -- rows, with those that have run out and are not swept yet
    last_put   text   NOT NULL  -- the last batch that was put
);
CREATE UNIQUE INDEX lists_name ON lists (name) WHERE deleted_at = 0;

CREATE TABLE list_entries (
    list_id    bigint NOT NULL,
    key        text COLLATE "C" NOT NULL,
    rev        bigint NOT NULL, -- of the last write to this row
    count      bigint NOT NULL,
    first_seen bigint NOT NULL,
    last_seen  bigint NOT NULL,
    expires_at bigint NOT NULL, -- 0: without end
    removed_at bigint NOT NULL, -- when an operator took it off; it has run out then
    sources    text   NOT NULL, -- JSON
    comment    bytea  NOT NULL,
    alert_id   bytea  NOT NULL,
    rule_id    bytea  NOT NULL,
    put_by     text   NOT NULL,
    PRIMARY KEY (key, list_id) -- in this order, so that no plan reads a whole list to find a few keys
);
CREATE INDEX list_entries_rev ON list_entries (rev);
CREATE INDEX list_entries_due ON list_entries (expires_at) WHERE expires_at > 0;

-- For other tools: what stands on the lists now, in readable types. It stays as it is within a major version; columns may be added at its end.
-- Free text that PostgreSQL's text cannot hold (it has a NUL) is shown with escapes.
CREATE VIEW parry_list_entries AS
SELECT
    l.name AS list,
    l.type AS type,
    e.key AS key,
    CASE WHEN l.type IN ('ip', 'cidr') THEN e.key::inet END AS network,
    e.count AS count,
    to_timestamp(e.first_seen / 1000000.0) AS first_seen,
    to_timestamp(e.last_seen / 1000000.0) AS last_seen,
    CASE WHEN e.expires_at > 0 THEN to_timestamp(e.expires_at / 1000000.0) END AS expires_at,
    CASE WHEN position('\x00'::bytea IN e.comment) > 0 THEN encode(e.comment, 'escape') ELSE convert_from(e.comment, 'UTF8') END AS comment,
    CASE WHEN position('\x00'::bytea IN e.alert_id) > 0 THEN encode(e.alert_id, 'escape') ELSE convert_from(e.alert_id, 'UTF8') END AS alert_id,
    CASE WHEN position('\x00'::bytea IN e.rule_id) > 0 THEN encode(e.rule_id, 'escape') ELSE convert_from(e.rule_id, 'UTF8') END AS rule_id,
    e.sources AS sources,
    e.put_by AS put_by
FROM list_entries e JOIN lists l ON l.id = e.list_id
WHERE l.deleted_at = 0 AND (e.expires_at = 0 OR e.expires_at > extract(epoch FROM now()) * 1000000);
