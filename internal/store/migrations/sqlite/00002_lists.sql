ALTER TABLE state ADD COLUMN lists bigint NOT NULL DEFAULT 0; -- revision of the last change to an active list

CREATE TABLE lists (
    id         bigint NOT NULL PRIMARY KEY,
    name       text NOT NULL,
    type       text   NOT NULL,
    ttl        bigint NOT NULL, -- microseconds, 0: without end
    max_ttl    bigint NOT NULL, -- microseconds, 0: any
    refresh    text   NOT NULL,
    capacity   bigint NOT NULL,
    comment    blob   NOT NULL,
    subdomains bigint NOT NULL,
    hit_syslog bigint NOT NULL,
    hit_every  bigint NOT NULL, -- microseconds
    source     text   NOT NULL,
    created_by text   NOT NULL,
    created_at bigint NOT NULL,
    deleted_at bigint NOT NULL, -- the row stays until the sweep has taken its entries
    entries    bigint NOT NULL, -- rows, with those that have run out and are not swept yet
    last_put   text   NOT NULL  -- the last batch that was put
) WITHOUT ROWID;
CREATE UNIQUE INDEX lists_name ON lists (name) WHERE deleted_at = 0;

CREATE TABLE list_entries (
    list_id    bigint NOT NULL,
    key        text NOT NULL,
    rev        bigint NOT NULL, -- of the last write to this row
    count      bigint NOT NULL,
    first_seen bigint NOT NULL,
    last_seen  bigint NOT NULL,
    expires_at bigint NOT NULL, -- 0: without end
    removed_at bigint NOT NULL, -- when an operator took it off; it has run out then
    sources    text   NOT NULL, -- JSON
    comment    blob   NOT NULL,
    alert_id   blob   NOT NULL,
    rule_id    blob   NOT NULL,
    put_by     text   NOT NULL,
    PRIMARY KEY (key, list_id) -- in this order, so that no plan reads a whole list to find a few keys
) WITHOUT ROWID;
CREATE INDEX list_entries_rev ON list_entries (rev);
CREATE INDEX list_entries_due ON list_entries (expires_at) WHERE expires_at > 0;
