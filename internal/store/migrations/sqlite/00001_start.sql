-- Times are Unix microseconds, 0 for none. Free text is bytes.

-- The counter that every writing transaction takes first, and exact counts beside it.
CREATE TABLE state (
    one        bigint NOT NULL PRIMARY KEY CHECK (one = 1),
    rev        bigint NOT NULL,
    live       bigint NOT NULL,
    ended      bigint NOT NULL,
    desired    bigint NOT NULL, -- revision of the last change that the lanes must hear of
    applied    bigint NOT NULL, -- of the last run that was finished
    outbox     bigint NOT NULL, -- of the last notification
    controller text   NOT NULL
) WITHOUT ROWID;

CREATE TABLE blocks (
    id          text NOT NULL PRIMARY KEY,
    key         text NOT NULL, -- natural key: source destination protocol port selector interface
    source      blob   NOT NULL, -- family, address, length: sorts so that a prefix comes right before what it holds
    selector    text NOT NULL,
    rev         bigint NOT NULL,
    changed_rev bigint NOT NULL, -- of the last write to this row
    end_rev     bigint NOT NULL, -- 0 while it lives
    end_reason  text   NOT NULL,
    ended_by    text   NOT NULL,
    ended_at    bigint NOT NULL,
    created_at  bigint NOT NULL,
    expires_at  bigint NOT NULL, -- 0: without end
    count       bigint NOT NULL,
    last_at     bigint NOT NULL,
    reason      blob   NOT NULL,
    origin      blob   NOT NULL,
    created_by  text   NOT NULL,
    widened     text   NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX blocks_live ON blocks (key) WHERE end_rev = 0;
CREATE INDEX blocks_due ON blocks (expires_at) WHERE end_rev = 0 AND expires_at > 0;
CREATE INDEX blocks_deleted ON blocks (key) WHERE end_reason = 'deleted';
CREATE INDEX blocks_source ON blocks (source);
CREATE INDEX blocks_changed ON blocks (changed_rev);

-- The evidence of a block: its first 10 requests in slots 1 to 10, the last 100 in a ring of slots 11 to 110.
CREATE TABLE requests (
    block_id    text NOT NULL,
    slot        bigint NOT NULL,
    n           bigint NOT NULL,
    id          text NOT NULL,
    received_at bigint NOT NULL,
    event_time  bigint NOT NULL,
    ttl         bigint NOT NULL, -- microseconds
    token_id    text   NOT NULL,
    token_name  text   NOT NULL,
    remote      text   NOT NULL,
    origin      blob   NOT NULL,
    alert_id    blob   NOT NULL,
    rule_id     blob   NOT NULL,
    reason      blob   NOT NULL,
    PRIMARY KEY (block_id, slot)
) WITHOUT ROWID;

-- Rules that live blocks need, and when the last one went.
CREATE TABLE rules (
    rule     text NOT NULL, -- family destination protocol port interface
    selector text NOT NULL,
    live     bigint NOT NULL,
    gone_at  bigint NOT NULL,
    PRIMARY KEY (rule, selector)
) WITHOUT ROWID;

CREATE TABLE idempotency (
    k          blob   NOT NULL PRIMARY KEY, -- SHA-256 of scope and key
    hash       blob   NOT NULL,
    block_id   text   NOT NULL,
    request_id text   NOT NULL,
    created_at bigint NOT NULL
) WITHOUT ROWID;

CREATE TABLE exemptions (
    id         text NOT NULL PRIMARY KEY,
    prefix     text   NOT NULL,
    reason     blob   NOT NULL,
    created_by text   NOT NULL,
    created_at bigint NOT NULL,
    expires_at bigint NOT NULL
) WITHOUT ROWID;

CREATE TABLE firewalls (
    name        text NOT NULL PRIMARY KEY,
    listed      bigint NOT NULL,
    retiring    bigint NOT NULL,
    digest      text   NOT NULL,
    applied_rev bigint NOT NULL,
    dirty_rev   bigint NOT NULL,
    epoch       bigint NOT NULL,
    adopt       bigint NOT NULL,
    approved    bigint NOT NULL,
    incident    text   NOT NULL, -- JSON, empty for none
    proof       text   NOT NULL, -- JSON, empty for none
    proved_at   bigint NOT NULL,
    last_run    text   NOT NULL
) WITHOUT ROWID;

CREATE TABLE holds (
    name    text NOT NULL PRIMARY KEY, -- a firewall, or empty for all
    held_by text   NOT NULL,
    reason  blob   NOT NULL,
    since   bigint NOT NULL
) WITHOUT ROWID;

CREATE TABLE rejects (
    firewall text NOT NULL REFERENCES firewalls ON DELETE CASCADE,
    block_id text NOT NULL REFERENCES blocks ON DELETE CASCADE,
    code     text   NOT NULL,
    run_id   text   NOT NULL,
    at       bigint NOT NULL,
    PRIMARY KEY (firewall, block_id)
) WITHOUT ROWID;
CREATE INDEX rejects_block ON rejects (block_id);

CREATE TABLE runs (
    id         text NOT NULL PRIMARY KEY,
    firewall   text NOT NULL,
    kind       text   NOT NULL,
    state      text   NOT NULL,
    failure    text   NOT NULL,
    task       blob   NOT NULL,
    message    blob   NOT NULL,
    revision   bigint NOT NULL,
    epoch      bigint NOT NULL,
    started_at bigint NOT NULL,
    ended_at   bigint NOT NULL,
    bundle     text   NOT NULL, -- JSON
    sent       bigint NOT NULL,
    rejected   bigint NOT NULL,
    want       text   NOT NULL, -- JSON
    got        text   NOT NULL, -- JSON
    dir        text   NOT NULL
) WITHOUT ROWID;
CREATE INDEX runs_firewall ON runs (firewall, id);

CREATE TABLE outbox (
    id         text NOT NULL PRIMARY KEY,
    kind       text   NOT NULL,
    firewall   text   NOT NULL,
    incident   text   NOT NULL,
    created_at bigint NOT NULL,
    report     blob   NOT NULL -- JSON
) WITHOUT ROWID;

CREATE TABLE deliveries (
    channel      text NOT NULL,
    outbox_id    text NOT NULL REFERENCES outbox ON DELETE CASCADE,
    attempts     bigint NOT NULL, -- that failed
    next_at      bigint NOT NULL, -- not before
    leased_until bigint NOT NULL, -- a worker has it in hand
    delivered_at bigint NOT NULL,
    error        blob   NOT NULL, -- of the last attempt
    PRIMARY KEY (channel, outbox_id)
) WITHOUT ROWID;
CREATE INDEX deliveries_outbox ON deliveries (outbox_id);
CREATE INDEX deliveries_open ON deliveries (channel, next_at) WHERE delivered_at = 0;

CREATE TABLE tokens (
    id         text NOT NULL PRIMARY KEY,
    name       text NOT NULL,
    role       text   NOT NULL,
    hash       blob   NOT NULL,
    created_by text   NOT NULL,
    created_at bigint NOT NULL,
    expires_at bigint NOT NULL,
    revoked_at bigint NOT NULL,
    revoked_by text   NOT NULL,
    last_used  bigint NOT NULL,
    sources    text   NOT NULL, -- joined by commas
    firewalls  text   NOT NULL, -- joined by blanks
    max_ttl    bigint NOT NULL, -- microseconds
    rate       bigint NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX tokens_name ON tokens (name) WHERE revoked_at = 0;
